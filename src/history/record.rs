//! Which facts count: the state machine of one record. Pure: no clock, no database.
//!
//! A final state is never left. A result counts once, and only from the agent that has the task, for
//! an attempt that is not over. Facts of an honest history lead to the same record in any order and
//! however often they come; what cannot be judged yet is [`Verdict::TooEarly`].

use jiff::Timestamp;

use super::{Place, Record, Slot, State, Verdict};
use crate::bus::message::{Address, Status, Task, TaskId, TaskResult};
use crate::names::AgentId;

/// The longest reason that is kept; agents write some of them.
const REASON_MAX: usize = 4096;

/// The highest number of an attempt that an agent may name.
const ATTEMPT_MAX: u64 = 1_000_000;

/// The database keeps microseconds; so does a record from the start.
fn micro(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

/// The beginning of a text, at most `max` bytes.
pub(super) fn head(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl Record {
    /// The record of a task that the bus has stored.
    pub(super) fn queued(task: &Task, slot: &Slot, place: &Place, at: Timestamp) -> Self {
        let (agent, attempt) = match slot {
            Slot::Agent(id) => (Some(id.clone()), task.attempt.max(1)),
            Slot::Any => (None, 0),
        };
        Self {
            task: task.id.clone(),
            slot: slot.clone(),
            agent,
            to: task.to.clone(),
            state: State::Queued,
            reason: None,
            attempt,
            handed: attempt,
            taken_back: 0,
            sender: task.sender,
            key: task.key.clone(),
            retry_of: task.retry_of.clone(),
            text: task.text.clone(),
            environment: task.environment.clone(),
            created: micro(task.created),
            deadline: task.deadline.map(micro),
            queued: micro(at),
            started: None,
            finished: None,
            exit: None,
            signal: None,
            usage: None,
            command: None,
            output: None,
            truncated: false,
            result_path: None,
            place: Some(place.clone()),
            given: None,
            result: None,
            decided: false,
        }
    }

    /// A record of which only the result is left: its task came before this history was begun.
    pub(super) fn recovered(
        task: &TaskId,
        agent: &AgentId,
        result: &TaskResult,
        place: &Place,
        at: Timestamp,
    ) -> Self {
        let mut sent = Task::new(Address::Agent(agent.clone()), "");
        sent.id = task.clone();
        // Nothing earlier is known than what the agent says, and that is bounded by what the server saw.
        sent.created = result.started.map_or(at, |started| started.min(at));
        let slot = Slot::Agent(agent.clone());
        let mut record = Self::queued(&sent, &slot, place, sent.created);
        record.place = None;
        record
    }

    /// The task of a record that was made without it has come.
    pub(super) fn complete(
        &mut self,
        task: &Task,
        slot: &Slot,
        place: &Place,
        at: Timestamp,
    ) -> Verdict {
        if self.place.is_some() {
            // The bus had lost it, and flockd has stored it once more; in a stream that was made anew
            // it can come to lie where it lay.
            if micro(at) > self.queued && !self.state.is_final() {
                (self.place, self.queued) = (Some(place.clone()), micro(at));
                self.reason = Some("the bus had lost it; it was stored again".to_owned());
                return Verdict::Accepted;
            }
            return Verdict::Repeated;
        }
        let known = Self::queued(task, slot, place, at);
        let at_least = |time: Option<Timestamp>| time.map(|time| time.max(known.queued));
        *self = Self {
            agent: self.agent.clone(),
            state: self.state,
            reason: self.reason.clone(),
            attempt: self.attempt.max(known.attempt),
            handed: self.handed,
            started: at_least(self.started),
            finished: at_least(self.finished),
            exit: self.exit,
            signal: self.signal,
            usage: self.usage,
            command: self.command.clone(),
            output: self.output.clone(),
            truncated: self.truncated,
            result_path: self.result_path.clone(),
            result: self.result.clone(),
            decided: self.decided,
            ..known
        };
        Verdict::Accepted
    }

    /// The shared queue handed the task to an agent. One that flockd ended meanwhile stays ended, but
    /// who had it is noted: this agent may confirm the end.
    pub(super) fn given(&mut self, agent: &AgentId, attempt: u64, place: &Place) -> Verdict {
        if let Some(no) = self.not_from_the_queue() {
            return no;
        }
        let over = self.over();
        let same = self.agent.as_ref() == Some(agent);
        if attempt == self.handed && self.agent.is_some() && !same {
            return Verdict::Refused(format!("attempt {attempt} was given to another agent"));
        }
        let known = same && self.attempt == attempt;
        if attempt <= self.handed || (self.result.is_some() && !known) {
            return over.unwrap_or(Verdict::Repeated);
        }
        // Handed out again: the attempts before are over, whether or not their end was heard of.
        (self.handed, self.attempt, self.taken_back) = (attempt, attempt, attempt - 1);
        (self.agent, self.given) = (Some(agent.clone()), Some(place.clone()));
        if !known {
            (self.started, self.command) = (None, None);
        }
        if over.is_none() {
            self.reason = None;
            self.state = if self.started.is_some() { State::Running } else { State::Queued };
        }
        over.unwrap_or(Verdict::Accepted)
    }

    /// The shared queue took the task back.
    pub(super) fn back(&mut self, attempt: u64, reason: &str) -> Verdict {
        if let Some(no) = self.not_from_the_queue().or_else(|| self.over()) {
            return no;
        }
        if attempt <= self.taken_back {
            return Verdict::Repeated;
        }
        self.taken_back = attempt;
        if attempt >= self.handed {
            self.handed = attempt;
            // The agent may have begun anew by itself; the next attempt counts on from there.
            self.attempt = self.attempt.max(attempt);
            self.state = State::Queued;
            self.reason = Some(head(reason, REASON_MAX));
            (self.agent, self.given, self.started, self.command) = (None, None, None, None);
        }
        Verdict::Accepted
    }

    /// An agent says that it has begun.
    pub(super) fn started(
        &mut self,
        agent: &AgentId,
        attempt: Option<u64>,
        command: Option<&Vec<String>>,
        at: Timestamp,
    ) -> Verdict {
        if let Some(no) = self.not_of(agent, attempt) {
            return no;
        }
        let before = self.clone();
        if let Some(attempt) = attempt.filter(|attempt| *attempt > self.attempt) {
            if self.result.is_some() {
                return Verdict::Refused(format!("it is {} already", self.state));
            }
            self.attempt = attempt;
            self.started = None;
        }
        self.begun(Some(at));
        self.command = self.command.take().or_else(|| command.cloned());
        if self.state == State::Queued {
            self.state = State::Running;
        }
        match before == *self {
            true => Verdict::Repeated,
            false => Verdict::Accepted,
        }
    }

    /// Of all that the agent says about when it began, the earliest counts, within what is known.
    fn begun(&mut self, at: Option<Timestamp>) {
        let said = at.map(|at| micro(at).max(self.queued));
        let first = self.started.into_iter().chain(said).min();
        self.started = first.map(|at| self.finished.map_or(at, |finished| at.min(finished)));
    }

    /// What an agent handed in.
    pub(super) fn result(
        &mut self,
        agent: &AgentId,
        result: &TaskResult,
        command: Option<&Vec<String>>,
        place: &Place,
        at: Timestamp,
    ) -> Verdict {
        if self.result.as_ref() == Some(place) {
            return Verdict::Repeated;
        }
        if let Some(no) = self.not_of(agent, result.attempt) {
            return no;
        }
        let (state, reason) = outcome(result);
        if let Some(no) = self.has_ended_otherwise(result, state) {
            return no;
        }
        let finished = result.finished.map_or(at, |finished| finished.min(at));
        let finished = micro(finished).max(self.queued);
        if let Some(attempt) = result.attempt.filter(|attempt| *attempt > self.attempt) {
            self.attempt = attempt;
            self.started = None;
        }
        self.finished = Some(finished);
        self.begun(result.started);
        self.state = state;
        if !self.decided {
            self.reason = reason;
        }
        self.exit = result.exit;
        self.signal = result.signal;
        self.usage = result.usage;
        self.output = Some(result.output.clone());
        self.truncated = result.truncated;
        self.result_path = result.result_path.as_deref().map(|path| head(path, REASON_MAX));
        self.command = self.command.take().or_else(|| command.cloned());
        self.result = Some(place.clone());
        Verdict::Accepted
    }

    /// flockd decided how it ends.
    pub(super) fn ended(&mut self, state: State, reason: &str, at: Timestamp) -> Verdict {
        if !state.is_final() {
            return Verdict::Refused(format!("{state} is no end"));
        }
        if self.state.is_final() && (self.state != state || self.decided) {
            return match self.decided && self.state == state {
                true => Verdict::Repeated,
                false => Verdict::Refused(format!("it is {} already", self.state)),
            };
        }
        let merged = self.state == state;
        if merged && !spoken_by_both(state) {
            return Verdict::Refused(format!("it is {state} already"));
        }
        self.state = state;
        self.decided = true;
        self.reason = Some(head(reason, REASON_MAX));
        if self.result.is_none() {
            self.finished = Some(micro(at).max(self.queued));
            self.begun(None);
        }
        Verdict::Accepted
    }

    /// Why a fact of the shared queue is none about this record.
    fn not_from_the_queue(&self) -> Option<Verdict> {
        (self.slot != Slot::Any)
            .then(|| Verdict::Refused("it is not from the shared queue".to_owned()))
    }

    fn over(&self) -> Option<Verdict> {
        self.state.is_final().then(|| Verdict::Refused(format!("it is {} already", self.state)))
    }

    /// Why an agent's word on this record does not count, or not yet.
    fn not_of(&self, agent: &AgentId, attempt: Option<u64>) -> Option<Verdict> {
        let holds = self.agent.as_ref() == Some(agent);
        let refused = |why: String| Some(Verdict::Refused(why));
        if attempt.is_some_and(|n| n > ATTEMPT_MAX) {
            return refused("there is no attempt of such a number".to_owned());
        }
        if self.slot != Slot::Any {
            return match attempt {
                _ if !holds => refused("it is not this agent's task".to_owned()),
                Some(n) if n < self.attempt => {
                    refused(format!("attempt {n} is over: attempt {} has begun", self.attempt))
                }
                _ => None,
            };
        }
        match attempt {
            Some(n) if n <= self.taken_back && n < self.attempt => {
                refused(format!("attempt {n} is over: attempt {} was handed out", self.attempt))
            }
            Some(n) if n <= self.taken_back => {
                refused(format!("attempt {n} is over: the task was taken back"))
            }
            Some(n) if n == self.attempt && !holds => {
                refused(format!("attempt {n} was given to another agent"))
            }
            // A higher number: the agent was started anew and began again with what it has.
            _ if holds => None,
            // Not yet said by the queue; the word of the queue can still be on its way.
            _ if self.result.is_none() => Some(Verdict::TooEarly),
            _ => Some(self.over().unwrap_or(Verdict::TooEarly)),
        }
    }

    /// Why a result is refused for a record that has ended, unless it says the same.
    fn has_ended_otherwise(&self, result: &TaskResult, state: State) -> Option<Verdict> {
        if !self.state.is_final() {
            return None;
        }
        if self.result.is_none() {
            let same = self.state == state && spoken_by_both(state);
            let why = || Verdict::Refused(format!("it is {} already", self.state));
            return (!same).then(why);
        }
        let again = (self.exit, self.signal, self.usage, self.truncated)
            == (result.exit, result.signal, result.usage, result.truncated)
            && self.state == state
            && self.output.as_deref() == Some(result.output.as_str());
        Some(match again {
            // Sent again because its first sending was not confirmed.
            true => Verdict::Repeated,
            false => Verdict::Refused("another result of this task has come already".to_owned()),
        })
    }
}

/// Ends that flockd decides and the agent then confirms, or the other way round.
fn spoken_by_both(state: State) -> bool {
    matches!(state, State::Cancelled | State::Expired)
}

/// The state that a result leads to, and the reason for people.
fn outcome(result: &TaskResult) -> (State, Option<String>) {
    let said = result.reason.as_deref().map(|reason| head(reason, REASON_MAX));
    let or = |word: &str| Some(said.clone().unwrap_or_else(|| word.to_owned()));
    match result.status {
        Status::Done => (State::Done, said),
        Status::Failed => (State::Failed, said),
        Status::Timeout => (State::Failed, or("its time was over")),
        Status::Refused => (State::Failed, or("the agent refused it")),
        Status::Unknown => (State::Failed, or("the agent gave a status that flock does not know")),
        Status::Expired => (State::Expired, said),
        Status::Cancelled => (State::Cancelled, said),
    }
}

#[cfg(test)]
mod tests;
