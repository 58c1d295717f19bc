//! What is to become of a task whose result does not come. Pure.
//!
//! A look at the bus can cross with what happens there, so a decision counts only when two looks in
//! a row lead to it; see [`crate::daemon::life`].

use std::time::Duration;

use jiff::Timestamp;

use crate::bus::hub::{Seen, Stored};
use crate::bus::streams::{DELIVERIES, Delivery};

/// An open task and what the bus shows of it.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The moment.
    pub now: Timestamp,
    /// When the bus had stored it.
    pub queued: Timestamp,
    /// When it was begun, as far as is known.
    pub begun: Option<Timestamp>,
    /// When it is of no use any more.
    pub deadline: Option<Timestamp>,
    /// Its number in the stream.
    pub place: u64,
    /// What lies there now.
    pub stored: Stored,
    /// The stream.
    pub seen: &'a Seen,
    /// How the agent takes its tasks.
    pub delivery: Delivery,
    /// How long a task may take.
    pub limit: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing now.
    Wait,
    /// It cannot be told now: what was thought of it before is thought still.
    Unknown,
    /// The server delivered it to a client that says nothing of beginnings: it has begun.
    Begun,
    /// It has failed, and why.
    Fail(String),
    /// The bus has lost it: it is stored again.
    Lost,
}

/// Decides.
#[must_use]
pub fn decide(case: &Case<'_>) -> Decision {
    // It may have been stored again, and flockd has not read where.
    if !case.seen.told {
        return Decision::Unknown;
    }
    let settled = case.seen.settled >= case.place;
    match (case.stored, case.delivery) {
        // The server hands it out no more, and nobody has acknowledged it.
        (Stored::Here, Delivery::Pull) if settled => {
            Decision::Fail(format!("it was handed out {DELIVERIES} times and never finished"))
        }
        (Stored::Here, _) => Decision::Wait,
        (Stored::Other | Stored::Unreadable, _) => Decision::Lost,
        (Stored::Gone, _) if case.seen.last < case.place || made_anew(case) => Decision::Lost,
        (Stored::Gone, _) if case.seen.delivered < case.place => Decision::Lost,
        // The server went past it without handing it out: it could not read it.
        (Stored::Gone, Delivery::Pull) if !settled && !case.seen.answered => Decision::Lost,
        (Stored::Gone, Delivery::Pull) => {
            Decision::Fail("the agent acknowledged it without a result".to_owned())
        }
        (Stored::Gone, Delivery::Push) => served(case),
    }
}

/// The stream is younger than the task.
fn made_anew(case: &Case<'_>) -> bool {
    case.seen.made > case.queued
}

/// A task that a plain client has got: it cannot come again.
fn served(case: &Case<'_>) -> Decision {
    let Some(begun) = case.begun else { return Decision::Begun };
    let age = case.now.duration_since(begun);
    let limit = case.limit.as_secs();
    if age.as_secs() >= 0 && age.unsigned_abs() > case.limit {
        return Decision::Fail(format!("no result within {limit} s (task.timeout)"));
    }
    match case.deadline {
        Some(deadline) if deadline < case.now && begun <= deadline => {
            Decision::Fail("no result before its deadline".to_owned())
        }
        _ => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn decision(
        stored: Stored,
        delivery: Delivery,
        (last, delivered, settled): (u64, u64, u64),
        change: impl FnOnce(&mut Case<'_>, &mut Seen),
    ) -> Decision {
        let mut seen = Seen {
            made: at(10),
            last,
            delivered,
            settled,
            busy: true,
            answered: true,
            told: true,
            set_back: false,
        };
        let blank = seen.clone();
        let mut case = Case {
            now: at(1000),
            queued: at(100),
            begun: None,
            deadline: None,
            place: 5,
            stored,
            seen: &blank,
            delivery,
            limit: Duration::from_secs(600),
        };
        change(&mut case, &mut seen);
        decide(&Case { seen: &seen, ..case })
    }

    #[test]
    fn a_task_that_is_still_there_waits_unless_it_was_handed_out_too_often() {
        use Stored::Here;
        let nothing = |_: &mut Case<'_>, _: &mut Seen| {};
        assert_eq!(decision(Here, Delivery::Pull, (9, 9, 4), nothing), Decision::Wait);
        assert_eq!(decision(Here, Delivery::Pull, (9, 2, 2), nothing), Decision::Wait);
        assert!(matches!(decision(Here, Delivery::Pull, (9, 9, 5), nothing), Decision::Fail(_)));
        assert_eq!(decision(Here, Delivery::Push, (9, 9, 9), nothing), Decision::Wait);
    }

    #[test]
    fn a_task_that_is_gone_was_acknowledged_or_lost() {
        use Stored::{Gone, Other, Unreadable};
        let nothing = |_: &mut Case<'_>, _: &mut Seen| {};
        assert!(matches!(decision(Gone, Delivery::Pull, (9, 9, 9), nothing), Decision::Fail(_)));
        assert!(matches!(decision(Gone, Delivery::Pull, (9, 6, 2), nothing), Decision::Fail(_)));
        assert_eq!(decision(Gone, Delivery::Pull, (9, 4, 4), nothing), Decision::Lost, "deleted");
        assert_eq!(decision(Gone, Delivery::Pull, (3, 3, 3), nothing), Decision::Lost, "cut off");
        for lost in [Other, Unreadable] {
            assert_eq!(decision(lost, Delivery::Pull, (9, 9, 9), nothing), Decision::Lost);
        }
        let unanswered = |_: &mut Case<'_>, seen: &mut Seen| seen.answered = false;
        let passed_over = decision(Gone, Delivery::Pull, (9, 6, 4), unanswered);
        assert_eq!(passed_over, Decision::Lost, "whatever else is in work");
        assert!(matches!(decision(Gone, Delivery::Pull, (9, 6, 6), unanswered), Decision::Fail(_)));
        let younger = |_: &mut Case<'_>, seen: &mut Seen| seen.made = at(101);
        assert_eq!(decision(Gone, Delivery::Pull, (9, 9, 9), younger), Decision::Lost);
        let behind = |_: &mut Case<'_>, seen: &mut Seen| seen.told = false;
        assert_eq!(decision(Gone, Delivery::Pull, (9, 9, 9), behind), Decision::Unknown);
    }

    #[test]
    fn a_service_has_its_time_from_when_it_got_the_task() {
        let gone = |begun: Option<i64>, deadline: Option<i64>| {
            decision(Stored::Gone, Delivery::Push, (9, 9, 0), |case, _| {
                (case.begun, case.deadline) = (begun.map(at), deadline.map(at));
            })
        };
        assert_eq!(gone(None, None), Decision::Begun);
        assert_eq!(gone(Some(500), None), Decision::Wait);
        assert!(matches!(gone(Some(399), None), Decision::Fail(_)));
        assert!(matches!(gone(Some(900), Some(950)), Decision::Fail(_)));
        assert_eq!(gone(Some(900), Some(1001)), Decision::Wait);
    }
}
