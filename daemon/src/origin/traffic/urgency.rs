//! How urgent a request is. It may become more urgent while it waits: a reader has come for what was read ahead.

use std::sync::Arc;

use cachelet_protocol::wire::Priority;
use tokio::sync::watch;

/// See the module's text. Clones are the same request's.
#[derive(Debug, Clone)]
pub struct Urgency {
    priority: Arc<watch::Sender<Priority>>,
}

impl Urgency {
    /// As urgent as `priority`.
    pub fn new(priority: Priority) -> Self {
        Self {
            priority: Arc::new(watch::Sender::new(priority)),
        }
    }

    /// A reader waits for it.
    pub fn demand() -> Self {
        Self::new(Priority::Demand)
    }

    /// Who waits for it now.
    pub fn now(&self) -> Priority {
        *self.priority.borrow()
    }

    /// Whether a reader waits for it.
    pub fn is_demand(&self) -> bool {
        self.now() == Priority::Demand
    }

    /// A reader waits for it from now on.
    pub fn promote(&self) {
        self.priority
            .send_if_modified(|priority| std::mem::replace(priority, Priority::Demand) != Priority::Demand);
    }

    /// Ends when a reader waits for it.
    pub(super) async fn promoted(&self) {
        // The sender is this one's own.
        let mut priority = self.priority.subscribe();
        drop(priority.wait_for(|priority| *priority == Priority::Demand).await);
    }
}
