//! Requests that wait for their replies, matched by request id in whatever order they come.
//!
//! Invariant: an entry leaves the table exactly once, with a reply or with the error that ended the connection; nobody
//! waits for ever. An `Open`'s two frames are put together here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cachelet_protocol::wire::{
    FOLLOWS_NOTHING, Freed, Granted, Invalidated, Opened, Ready, RequestId, Tallied, Welcome,
};

use crate::deadline::Deadline;
use crate::error::Error;

/// Locks a mutex whose data stays sound whatever a panicking holder left undone.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A `Granted` with its descriptor.
#[derive(Debug)]
pub(crate) struct Descriptor {
    pub(crate) granted: Granted,
    pub(crate) file: OwnedFd,
}

/// What came behind an `Opened`.
#[derive(Debug)]
pub(crate) enum Follow {
    Nothing,
    Grant(Descriptor),
    Data(Vec<u8>),
    Refused(Error),
}

/// A complete reply.
#[derive(Debug)]
pub(crate) enum Reply {
    Welcome(Box<Welcome>),
    Opened(Opened, Follow),
    Granted(Descriptor),
    Ready(Ready),
    Invalidated(Invalidated),
    Freed(Freed),
    Tallied(Tallied),
}

/// One frame's content, on its way to whoever asked.
#[derive(Debug)]
pub(crate) enum Part {
    Reply(Reply),
    /// The first frame of an `Open`'s reply.
    Opened(Opened),
    Data(Vec<u8>),
    Refused(Error),
}

type Outcome = Result<Reply, Error>;

/// What runs, on the reader thread, when a reply that nobody waits for arrives. It must not block.
pub(crate) type Install = Box<dyn FnOnce(Outcome) + Send>;

/// A caller that waits for a reply.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    outcome: Mutex<Option<Outcome>>,
    arrived: Condvar,
}

impl Waiter {
    fn complete(&self, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.arrived.notify_one();
    }

    /// Waits until `deadline`; `None` if nothing came.
    pub(crate) fn wait(&self, deadline: Deadline) -> Option<Outcome> {
        let mut outcome = lock(&self.outcome);
        while outcome.is_none() {
            let left = deadline.left();
            if left == Duration::ZERO {
                return None;
            }
            outcome = self
                .arrived
                .wait_timeout(outcome, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        outcome.take()
    }
}

enum Target {
    Waiter(Arc<Waiter>),
    Install(Install),
}

impl Target {
    fn complete(self, outcome: Outcome) {
        match self {
            Self::Waiter(waiter) => waiter.complete(outcome),
            Self::Install(install) => install(outcome),
        }
    }
}

struct Entry {
    target: Target,
    opened: Option<Opened>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<RequestId, Entry>,
    issued: u64,
    ended: Option<Error>,
}

/// The table of one control connection.
#[derive(Default)]
pub(crate) struct Pending {
    table: Mutex<Table>,
}

/// What became of a frame.
#[derive(Debug)]
pub(crate) enum Delivery {
    Delivered,
    /// The request was given up meanwhile; the caller of `deliver` cleans up behind it.
    Late(Part),
    /// No request with this id was ever sent.
    Unasked,
    /// The frame cannot be an answer to its request.
    Mismatched,
}

impl Pending {
    /// A new request id whose reply somebody waits for.
    pub(crate) fn wait(&self) -> Result<(RequestId, Arc<Waiter>), Error> {
        let waiter = Arc::new(Waiter::default());
        let request = self.enter(Target::Waiter(Arc::clone(&waiter)))?;
        Ok((request, waiter))
    }

    /// A new request id whose reply is handed to `install`; so is the error, at once, if the connection has ended.
    pub(crate) fn install(&self, install: Install) -> Option<RequestId> {
        self.enter(Target::Install(install)).ok()
    }

    fn enter(&self, target: Target) -> Result<RequestId, Error> {
        let mut table = lock(&self.table);
        if let Some(error) = table.ended.clone() {
            drop(table);
            target.complete(Err(error.clone()));
            return Err(error);
        }
        let request = loop {
            table.issued += 1;
            // Ids wrap after 4 billion requests; 0 is for one-way messages, and a request may wait that long.
            let request = table.issued as RequestId;
            if request != 0 && !table.entries.contains_key(&request) {
                break request;
            }
        };
        table.entries.insert(request, Entry { target, opened: None });
        Ok(request)
    }

    /// Gives a request up. Its reply, should it come, is [`Delivery::Late`].
    pub(crate) fn give_up(&self, request: RequestId) -> Option<Opened> {
        lock(&self.table)
            .entries
            .remove(&request)
            .and_then(|entry| entry.opened)
    }

    /// Hands a frame's content to whoever asked for it.
    pub(crate) fn deliver(&self, request: RequestId, part: Part) -> Delivery {
        let mut table = lock(&self.table);
        let Some(entry) = table.entries.get_mut(&request) else {
            let issued = table.issued > u64::from(u32::MAX) || u64::from(request) <= table.issued;
            return if issued {
                Delivery::Late(part)
            } else {
                Delivery::Unasked
            };
        };
        let outcome = match (entry.opened.take(), part) {
            (None, Part::Opened(opened)) if opened.follows != FOLLOWS_NOTHING => {
                entry.opened = Some(opened);
                return Delivery::Delivered;
            }
            (None, Part::Opened(opened)) => Ok(Reply::Opened(opened, Follow::Nothing)),
            (None, Part::Reply(reply)) => Ok(reply),
            (None, Part::Refused(error)) => Err(error),
            (Some(opened), Part::Reply(Reply::Granted(descriptor))) => {
                Ok(Reply::Opened(opened, Follow::Grant(descriptor)))
            }
            (Some(opened), Part::Data(bytes)) => Ok(Reply::Opened(opened, Follow::Data(bytes))),
            (Some(opened), Part::Refused(error)) => Ok(Reply::Opened(opened, Follow::Refused(error))),
            (None, Part::Data(_)) | (Some(_), Part::Reply(_) | Part::Opened(_)) => {
                return Delivery::Mismatched;
            }
        };
        let entry = table.entries.remove(&request).expect("it was found above");
        drop(table);
        entry.target.complete(outcome);
        Delivery::Delivered
    }

    /// Fails every request from now on; those that were sent may still be answered. The first error stays.
    pub(crate) fn close(&self, error: &Error) {
        lock(&self.table).ended.get_or_insert_with(|| error.clone());
    }

    /// Fails every request, now and from now on. The first error stays.
    pub(crate) fn end(&self, error: &Error) {
        let entries = {
            let mut table = lock(&self.table);
            table.ended.get_or_insert_with(|| error.clone());
            std::mem::take(&mut table.entries)
        };
        for (_, entry) in entries {
            entry.target.complete(Err(error.clone()));
        }
    }

    /// Why the connection ended, if it has.
    pub(crate) fn ended(&self) -> Option<Error> {
        lock(&self.table).ended.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachelet_protocol::block::PageSet;
    use cachelet_protocol::ids::FileId;

    fn ready(file: u64) -> Part {
        Part::Reply(Reply::Ready(Ready {
            file_id: FileId(file),
            present: PageSet::EMPTY,
        }))
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn replies_reach_their_requests_in_any_order() {
        let pending = Pending::default();
        let (first, first_waiter) = pending.wait().unwrap();
        let (second, second_waiter) = pending.wait().unwrap();
        assert!(matches!(pending.deliver(second, ready(2)), Delivery::Delivered));
        assert!(matches!(pending.deliver(first, ready(1)), Delivery::Delivered));
        for (waiter, file) in [(first_waiter, 1), (second_waiter, 2)] {
            let Some(Ok(Reply::Ready(ready))) = waiter.wait(soon()) else {
                panic!("no reply");
            };
            assert_eq!(ready.file_id, FileId(file));
        }
    }

    #[test]
    fn a_reply_that_was_given_up_is_late_and_one_never_asked_for_is_unasked() {
        let pending = Pending::default();
        let (request, waiter) = pending.wait().unwrap();
        assert!(waiter.wait(Deadline::after(Duration::ZERO)).is_none());
        pending.give_up(request);
        assert!(matches!(pending.deliver(request, ready(1)), Delivery::Late(_)));
        assert!(matches!(
            pending.deliver(request + 1, ready(1)),
            Delivery::Unasked
        ));
    }

    #[test]
    fn a_closed_table_takes_no_request_and_still_delivers_replies() {
        let pending = Pending::default();
        let (request, waiter) = pending.wait().unwrap();
        pending.close(&Error::Unavailable("gone".into()));
        assert!(pending.wait().is_err());
        assert!(matches!(pending.deliver(request, ready(1)), Delivery::Delivered));
        assert!(matches!(waiter.wait(soon()), Some(Ok(Reply::Ready(_)))));
    }

    #[test]
    fn the_end_of_the_connection_fails_every_waiter_and_every_later_request() {
        let pending = Pending::default();
        let (_, waiter) = pending.wait().unwrap();
        pending.end(&Error::Unavailable("gone".into()));
        pending.end(&Error::Unavailable("gone twice".into()));
        assert!(matches!(waiter.wait(soon()), Some(Err(Error::Unavailable(_)))));
        assert!(matches!(pending.wait(), Err(Error::Unavailable(why)) if why == "gone"));
        let (told, hear) = std::sync::mpsc::channel();
        let install = move |outcome: Outcome| told.send(outcome.is_err()).unwrap();
        assert_eq!(pending.install(Box::new(install)), None);
        assert!(hear.try_recv().unwrap());
    }
}
