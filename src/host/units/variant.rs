//! A plan's values in D-Bus form.

use zbus::wire::{OwnedVariant, Variant};

use crate::plan::Value;

/// The value as StartTransientUnit takes it.
pub(super) fn of(value: &Value) -> Variant<'static> {
    match value.clone() {
        Value::Bool(v) => v.into(),
        Value::I32(v) => v.into(),
        Value::U32(v) => v.into(),
        Value::U64(v) => v.into(),
        Value::Str(v) => v.into(),
        Value::Strs(v) => v.into(),
        Value::List(allow, v) => (allow, v).into(),
        Value::Statuses(statuses, signals) => (statuses, signals).into(),
        Value::Pairs(v) => v.into(),
        Value::Files(v) => v.into(),
        Value::Binds(v) => v.into(),
        Value::Addresses(v) => v.into(),
        Value::Exec(v) => v.into(),
        Value::Command(v) => v.into(),
        Value::Fields(v) => v.into_iter().map(String::into_bytes).collect::<Vec<_>>().into(),
    }
}

/// Whether PID 1 holds this value. `None`: it shows the property in another form than it takes,
/// so that another road has to be taken (the kernel is asked in [`super::readback`]).
pub(super) fn holds(wanted: &Value, found: &OwnedVariant) -> Option<bool> {
    match wanted {
        Value::Bool(_) | Value::I32(_) | Value::U32(_) | Value::U64(_) | Value::Str(_) => {
            Some(of(wanted) == **found)
        }
        Value::Strs(wanted) => {
            let found: Vec<String> = found.try_clone().ok()?.try_into().ok()?;
            Some(wanted.iter().all(|w| found.contains(w)))
        }
        _ => None,
    }
}
