//! Where there are no quotas. How they hold is tried in the virtual machine: `tests/system/test_quota.py`.

use super::*;
use crate::host::testing;
use crate::plan::{Bind, QuotaPlan};

fn plan(path: &Path, bytes: Option<u64>) -> Plan {
    let mut plan = testing::plan("a");
    plan.quota = QuotaPlan { bytes, files: None };
    let bind = |source: &Path, access| Bind {
        source: source.into(),
        target: source.into(),
        access,
        optional: false,
    };
    plan.root.binds =
        vec![bind(Path::new("/usr"), Access::ReadOnly), bind(path, Access::ReadWrite)];
    plan
}

#[test]
fn a_limit_that_nothing_holds_is_an_error_that_says_where_and_what_to_do() {
    // The kernel has no quotas for this one.
    let path = Path::new("/proc");
    let error = enforced(&plan(path, Some(1 << 30))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "limits.disk: /proc is on /proc (proc), which holds no user to a limit: keep it on ext4 or \
         xfs, mounted with usrquota"
    );
    let mut both = plan(path, Some(1 << 30));
    both.quota.files = Some(1000);
    let text = enforced(&both).unwrap_err().to_string();
    assert!(text.starts_with("limits.disk and limits.files: "), "{text}");
    enforced(&plan(path, None)).unwrap();
    check(&both).unwrap();
    if testing::needs_root("quota_ensure") {
        let done = ensure(&[both, plan(path, None)]).unwrap();
        assert_eq!((done.changed.len(), done.unenforced), (0, vec![text]));
    }
}

#[test]
fn every_file_system_counts_once_and_only_what_may_be_written() {
    let mounts = Mounts::read().unwrap();
    let on = |plan: &Plan| -> Vec<PathBuf> {
        places(&mounts, plan).unwrap().into_iter().map(|place| place.path).collect()
    };
    let mut plan = plan(Path::new("/proc"), Some(1 << 30));
    plan.root.binds.push(Bind { source: "/proc/self".into(), ..plan.root.binds[1].clone() });
    plan.root.binds.push(Bind { source: "/missing".into(), ..plan.root.binds[1].clone() });
    assert_eq!(on(&plan)[0], Path::new("/proc"));
    assert!(!on(&plan).contains(&"/proc/self".into()) && !on(&plan).contains(&"/usr".into()));
    plan.level = Level::Workspace;
    assert!(on(&plan).is_empty());
}

#[test]
fn numbers_become_words() {
    let words = |space, files| words(Quota { space, files });
    assert_eq!(words(0, 0), "as much as fits");
    assert_eq!(words(2 << 20, 0), "2 GiB");
    assert_eq!(words(0, 7), "7 files");
    assert_eq!(words(1024, 7), "1 MiB and 7 files");
}
