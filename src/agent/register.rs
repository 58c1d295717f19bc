//! The tasks that are in progress here, and those that were cancelled: none runs twice at once, and
//! a cancel reaches one that runs, waits or is still to come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::bus::message::TaskId;

/// So many cancelled tasks are remembered; flock's own history knows all of them.
const REMEMBERED: usize = 10_000;

/// Who is at work on what.
#[derive(Debug, Default)]
pub struct Register {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<TaskId, Entry>,
    cancelled: VecDeque<TaskId>,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    cancel: watch::Sender<bool>,
}

/// What is to be done with a message.
#[derive(Debug)]
pub enum Turn<'a> {
    /// It is this task's turn, until the place is given back.
    Now(Place<'a>),
    /// This very message is in work already.
    Already,
    /// Another message with the same task is in work; the receiver fails when it is done.
    After(watch::Receiver<bool>),
}

/// A task's place in the register. Dropped, the task is not in progress any more.
#[derive(Debug)]
pub struct Place<'a> {
    register: &'a Register,
    task: TaskId,
    /// Becomes true when somebody cancels the task.
    pub cancel: watch::Receiver<bool>,
}

impl Register {
    /// Enters a task that came with message number `sequence`.
    pub fn enter(&self, task: &TaskId, sequence: u64) -> Turn<'_> {
        let mut inner = self.lock();
        match inner.running.get(task) {
            Some(entry) if entry.sequence == sequence => Turn::Already,
            Some(entry) => Turn::After(entry.cancel.subscribe()),
            None => {
                let (sender, cancel) = watch::channel(false);
                inner.running.insert(task.clone(), Entry { sequence, cancel: sender });
                Turn::Now(Place { register: self, task: task.clone(), cancel })
            }
        }
    }

    /// Cancels a task: one that runs, and one that is still to come.
    pub fn cancel(&self, task: &TaskId) {
        let mut inner = self.lock();
        if let Some(entry) = inner.running.get(task) {
            entry.cancel.send_replace(true);
        }
        if !inner.cancelled.contains(task) {
            if inner.cancelled.len() >= REMEMBERED {
                inner.cancelled.pop_front();
            }
            inner.cancelled.push_back(task.clone());
        }
    }

    /// Whether somebody cancelled it.
    pub fn is_cancelled(&self, task: &TaskId) -> bool {
        self.lock().cancelled.contains(task)
    }

    /// The tasks in progress.
    pub fn running(&self) -> Vec<TaskId> {
        self.lock().running.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.register.lock().running.remove(&self.task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_in_progress_once() {
        let register = Register::default();
        let task = TaskId::parse("t").unwrap();
        let Turn::Now(place) = register.enter(&task, 7) else { panic!("it is free") };
        assert!(matches!(register.enter(&task, 7), Turn::Already));
        let Turn::After(other) = register.enter(&task, 8) else { panic!("it is taken") };
        assert_eq!(register.running(), std::slice::from_ref(&task));
        assert!(other.has_changed().is_ok());
        drop(place);
        assert!(other.has_changed().is_err(), "the one that waits hears of it");
        assert!(matches!(register.enter(&task, 8), Turn::Now(_)));
    }

    #[test]
    fn a_cancel_reaches_what_runs_and_what_comes() {
        let register = Register::default();
        let (now, later) = (TaskId::parse("now").unwrap(), TaskId::parse("later").unwrap());
        let Turn::Now(place) = register.enter(&now, 1) else { panic!("it is free") };
        register.cancel(&now);
        register.cancel(&later);
        register.cancel(&later);
        assert!(*place.cancel.borrow() && register.is_cancelled(&later));
        for n in 0..REMEMBERED {
            register.cancel(&TaskId::parse(&format!("n{n}")).unwrap());
        }
        assert!(!register.is_cancelled(&later), "the memory is bounded");
        assert_eq!(register.lock().cancelled.len(), REMEMBERED);
    }
}
