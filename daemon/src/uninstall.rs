//! Waits until a `DaemonSet` has wiped every node. Runs in a pod of the uninstallation, which may read that one `DaemonSet` and
//! nothing else; no daemon ever asks the Kubernetes API.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

/// Where Kubernetes mounts what a pod needs to ask its API.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How often the `DaemonSet` is looked at.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why it is not known that every node is wiped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a pod, or one without access to the API.
    #[error(
        "cannot ask the Kubernetes API: {0}; this is for the pod that `wipeOnUninstall` of the chart runs"
    )]
    NoAccess(String),
    /// Some nodes are not wiped.
    #[error(
        "{progress} after {} s: the others are down, or their pods of DaemonSet {daemonset} say why not; where no pod could \
         run, remove `v1` from the cache directory by hand", within.as_secs()
    )]
    NotWiped {
        /// How far it came.
        progress: Progress,
        /// The `DaemonSet`.
        daemonset: String,
        /// How long it had.
        within: Duration,
    },
    /// The `DaemonSet` was never seen.
    #[error("cannot read DaemonSet {daemonset}: {reason}; whether the nodes are wiped is not known")]
    NotSeen {
        /// The `DaemonSet`.
        daemonset: String,
        /// What the API last said.
        reason: String,
    },
}

/// How many nodes are wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    wiped: u32,
    nodes: u32,
    /// Whether the numbers are of the `DaemonSet` as it is now.
    settled: bool,
}

impl Progress {
    /// A pod is ready once its node is wiped.
    fn of(text: &str) -> Result<Self, serde_json::Error> {
        let found: DaemonSet = serde_json::from_str(text)?;
        Ok(Self {
            wiped: found.status.number_ready,
            nodes: found.status.desired_number_scheduled,
            settled: found.status.observed_generation >= found.metadata.generation,
        })
    }

    fn is_complete(self) -> bool {
        self.settled && self.wiped == self.nodes
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} nodes are wiped", self.wiped, self.nodes)
    }
}

#[derive(Deserialize)]
struct DaemonSet {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    generation: i64,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    observed_generation: i64,
    desired_number_scheduled: u32,
    number_ready: u32,
}

/// The API server as a pod sees it, and the one object that is asked for.
struct Api {
    client: reqwest::Client,
    url: String,
}

impl Api {
    fn of_pod(daemonset: &str) -> Result<Self, Error> {
        let read = |name: &str| {
            std::fs::read_to_string(Path::new(SERVICE_ACCOUNT).join(name))
                .map_err(|error| Error::NoAccess(format!("{SERVICE_ACCOUNT}/{name}: {error}")))
        };
        let variable = |name: &str| {
            std::env::var(name)
                .map_err(|_| Error::NoAccess(format!("environment variable {name} is not set")))
        };
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let namespace = read("namespace")?;
        let refused = |error: reqwest::Error| Error::NoAccess(format!("{SERVICE_ACCOUNT}/ca.crt: {error}"));
        let authorities =
            reqwest::Certificate::from_pem_bundle(read("ca.crt")?.as_bytes()).map_err(refused)?;
        let client = reqwest::Client::builder()
            .tls_certs_only(authorities)
            .timeout(ANSWER_WITHIN)
            .build()
            .map_err(refused)?;
        let url = format!(
            "https://{host}:{port}/apis/apps/v1/namespaces/{}/daemonsets/{daemonset}",
            namespace.trim()
        );
        Ok(Self { client, url })
    }

    async fn progress(&self) -> Result<Progress, String> {
        // Read each time: kubelet renews it.
        let token = std::fs::read_to_string(Path::new(SERVICE_ACCOUNT).join("token"))
            .map_err(|error| format!("{SERVICE_ACCOUNT}/token: {error}"))?;
        let sent = self.client.get(&self.url).bearer_auth(token.trim()).send().await;
        let reply = sent
            .and_then(reqwest::Response::error_for_status)
            .map_err(|error| with_causes(&error))?;
        let text = reply.text().await.map_err(|error| with_causes(&error))?;
        Progress::of(&text).map_err(|error| error.to_string())
    }
}

/// An error with what caused it: reqwest's own text says only which request failed.
fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Waits until every node of a `DaemonSet` in this pod's namespace is wiped, and says how many are whenever that changes.
pub async fn until_wiped(daemonset: &str, within: Duration) -> Result<(), Error> {
    let api = Api::of_pod(daemonset)?;
    let deadline = Instant::now() + within;
    let (mut last, mut refusal) = (None, String::new());
    while Instant::now() < deadline {
        match api.progress().await {
            Ok(progress) => {
                if progress.settled && last != Some(progress) {
                    // Whoever does not listen has lost nothing.
                    let _ = writeln!(io::stdout(), "{progress}");
                }
                if progress.is_complete() {
                    return Ok(());
                }
                last = Some(progress);
            }
            Err(reason) => refusal = reason,
        }
        sleep(ASK_EVERY).await;
    }
    let daemonset = daemonset.to_owned();
    Err(match last {
        Some(progress) => Error::NotWiped {
            progress,
            daemonset,
            within,
        },
        None => Error::NotSeen {
            daemonset,
            reason: refusal,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(status: &str) -> Progress {
        Progress::of(&format!(
            "{{\"kind\":\"DaemonSet\",\"metadata\":{{\"name\":\"x\",\"generation\":1}}{status}}}"
        ))
        .unwrap()
    }

    #[test]
    fn a_daemonset_is_complete_when_its_status_is_current_and_all_pods_are_ready() {
        let status = |observed, desired, ready| {
            let text = format!(
                ",\"status\":{{\"observedGeneration\":{observed},\"desiredNumberScheduled\":{desired},\
                 \"numberReady\":{ready},\"currentNumberScheduled\":9}}"
            );
            progress(&text)
        };
        assert!(status(1, 3, 3).is_complete());
        assert!(status(1, 0, 0).is_complete(), "no node had a daemon");
        assert!(!status(1, 3, 2).is_complete());
        assert_eq!(status(1, 3, 2).to_string(), "2 of 3 nodes are wiped");
    }

    #[test]
    fn a_daemonset_that_no_controller_has_seen_is_not_complete() {
        assert!(!progress("").is_complete());
        assert!(!progress(",\"status\":{\"desiredNumberScheduled\":0,\"numberReady\":0}").is_complete());
    }
}
