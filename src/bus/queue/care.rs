//! Takes tasks of the shared queue back, drops them, and keeps those that are worked on.

use std::sync::Arc;

use async_nats::jetstream::AckKind;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::lanes::Arrival;
use super::{ACK_WAIT, Given, LAST, Order, Queue, work};
use crate::bus::message::TaskId;

impl Queue {
    /// Keeps the server from handing out what waits or is worked on, and takes back from the silent.
    pub(super) async fn look_after(&mut self) {
        if self.begun.elapsed() > 2 * ACK_WAIT {
            // What was left over has come again by now. The rest had ended before.
            for (_, left) in self.left.drain() {
                self.seats.free(&left.agent);
            }
            self.early.clear();
        }
        // Whoever had a task before this process began has time for a heartbeat.
        let silent = |given: &Given| self.seats.is_silent(&given.agent, self.begun);
        let kept = self.given.values().filter(|given| !silent(given)).map(|given| &given.message);
        for message in kept.chain(self.lanes.messages()) {
            if let Err(e) = message.ack_with(AckKind::Progress).await {
                return tracing::warn!("keep the tasks of the shared queue: {e}");
            }
        }
        let back = self.given.iter().filter(|(_, given)| silent(given) && given.place.is_some());
        for (id, agent) in
            back.map(|(id, given)| (id.clone(), given.agent.clone())).collect::<Vec<_>>()
        {
            self.take_back(&id, &format!("{agent} ended or fell silent"));
        }
    }

    fn take_back(&mut self, id: &TaskId, why: &str) {
        let Some(given) = self.given.remove(id) else { return };
        tracing::warn!("task {id} of the shared queue goes to another: {why}");
        let Given { lane, agent, task, place, message, .. } = given;
        self.seats.free(&agent);
        let lost = work::Lost { lane, agent, task, place, message, why: why.to_owned() };
        self.work.push(work::take_back(self.hub.clone(), Arc::clone(&self.book), lost));
    }

    /// Does what it is told.
    pub(super) fn obey(&mut self, order: Order) {
        match order {
            Order::Again(id, why) => self.take_back(&id, &why),
            // What it had is taken back at the next look, after what it said at last.
            Order::Gone(agent, at) => self.seats.gone(agent, at),
            Order::Drop(id) => self.drop_task(id),
            Order::Result(from, result) => self.finished(&from, *result),
        }
    }

    fn drop_task(&mut self, id: TaskId) {
        if let Some(held) = self.lanes.remove(&id) {
            self.work.push(work::finish(self.hub.clone(), held.message, id, None, None));
        } else if let Some(given) = self.given.get_mut(&id) {
            given.dropped = true;
            if given.place.is_some()
                && let Some(given) = self.given.remove(&id)
            {
                self.drop_given(given);
            }
        } else if let Some(left) = self.left.remove(&id) {
            self.seats.free(&left.agent);
            self.early.insert(id, None);
        }
    }

    pub(super) fn drop_given(&mut self, given: Given) {
        self.seats.free(&given.agent);
        let Given { agent, task, place, message, .. } = given;
        if let Some(place) = place {
            self.work.push(work::remove(self.hub.clone(), agent, place, task.id.clone()));
        }
        self.work.push(work::finish(self.hub.clone(), message, task.id, None, None));
    }

    /// Lets what is under way end, and puts back what waits.
    pub(super) async fn leave(mut self, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
        let rest = async { while self.work.next().await.is_some() {} };
        if timeout(LAST, rest).await.is_err() {
            tracing::warn!("the shared queue stops before the bus has answered");
        }
        arrivals.close();
        let mut late = Vec::new();
        while let Some(arrival) = arrivals.recv().await {
            late.push(arrival.message);
        }
        for message in self.lanes.messages().chain(&late) {
            // Without it they come again a little later.
            let _ = message.ack_with(AckKind::Nak(None)).await;
        }
    }
}
