//! Standing by: the cache directory belongs to the daemon that this one replaces.
//!
//! In a rollout with `maxSurge: 1` Kubernetes starts the new pod first and stops the old one when the new one is ready. Two
//! daemons never share a cache directory, so the new one waits for the old one's end, and says meanwhile that it is ready: it is
//! what its replacement waits for. The wait is bounded: a directory that nobody gives up is a mistake that must show.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::{Admin, Facts};
use crate::app::{self, BuildError};
use crate::config::{Config, Environment};
use crate::store;

/// How often the directory is tried. Nobody serves in between.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// How standing by ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The directory is nobody's, or the wait is over and opening it will say whose it is.
    Proceed,
    /// The daemon was told to stop before its turn came.
    Stopped,
}

/// Waits, at most for `cache.takeover_wait`, until no other daemon holds the cache directory. Answers on the admin port if it
/// has to wait. Must be called within a Tokio runtime.
pub async fn until_free(
    config: &Config,
    environment: Environment<'_>,
    stop: &CancellationToken,
) -> Result<Ended, BuildError> {
    let patience = config.cache.takeover_wait;
    if patience.is_zero() || !store::is_held(&config.cache.directory) {
        return Ok(Ended::Proceed);
    }
    let identity = config.identity(environment)?;
    let listener = app::bind("admin.listen", config.admin.listen)?;
    let facts = Standby {
        directory: config.cache.directory.display().to_string(),
        node: identity.node.to_string(),
        uuid: identity.uuid.to_string(),
    };
    let admin = listener.local_addr().unwrap_or(config.admin.listen);
    info!(directory = facts.directory, ?patience, %admin, "standing by: another daemon holds the cache directory");
    let _admin = Admin::start(listener, Arc::new(facts)).map_err(BuildError::Admin)?;
    let deadline = Instant::now() + patience;
    while store::is_held(&config.cache.directory) && Instant::now() < deadline {
        tokio::select! {
            () = stop.cancelled() => return Ok(Ended::Stopped),
            () = sleep(TRY_EVERY) => {}
        }
    }
    Ok(Ended::Proceed)
}

/// What the admin port says meanwhile.
struct Standby {
    directory: String,
    node: String,
    uuid: String,
}

impl Facts for Standby {
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    fn notes(&self) -> Vec<String> {
        vec![format!(
            "standing by: takes over when the daemon that holds {} stops",
            self.directory
        )]
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }

    fn status(&self) -> serde_json::Value {
        json!({
            "node": self.node,
            "worker_uuid": self.uuid,
            "version": env!("CARGO_PKG_VERSION"),
            "state": "standby",
            "directory": self.directory,
        })
    }
}
