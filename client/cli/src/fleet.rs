//! The cluster's workers, as a command that talks to all of them needs them: who there is, and how each is reached.

use std::net::{SocketAddr, ToSocketAddrs};

use cachelet_client::{Client, Identity, Options, Target};
use cachelet_protocol::ids::NodeName;

use crate::arguments::Common;
use crate::connect;
use crate::failure::{Failure, Kind};
use crate::service::{self, Service, part};

/// A worker of the cluster.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) node: String,
    pub(crate) state: String,
    pub(crate) capacity_bytes: u64,
    /// How it is reached; `Err`: why it is not.
    target: Result<Target, String>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) members: Vec<Member>,
}

impl Member {
    /// Whether blocks may be put there.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == "ready"
    }

    /// A connection to it, made now.
    pub(crate) fn connect(&self) -> Result<Client, Failure> {
        let target = self
            .target
            .clone()
            .map_err(|why| Failure::new(Kind::Unavailable, why))?;
        let client = Client::new(Options {
            target,
            identity: Identity {
                client: concat!("cachelet/", env!("CARGO_PKG_VERSION")).into(),
                ..Identity::default()
            },
            readahead_bytes: 0,
            inline_only: true,
            // One that is gone is given up soon: others take over from it.
            reconnect_attempts: 1,
            ..Options::default()
        });
        let worker = client.connect()?;
        if worker.node.as_str() != self.node {
            let message = format!(
                "the worker that answers for node {} says that it is of node {}",
                self.node, worker.node
            );
            return Err(Failure::new(Kind::Temporary, message));
        }
        Ok(client)
    }
}

impl Fleet {
    /// The workers that the locality service knows.
    pub(crate) fn gather(common: &Common, service: &Service) -> Result<Self, Failure> {
        let answer = service.nodes()?;
        let workers: Vec<service::Worker> = part(&answer, "nodes")?;
        if workers.is_empty() {
            let message = "no worker is registered with the locality service: is cacheletd running, with [locality] service?";
            return Err(Failure::new(Kind::Unavailable, message));
        }
        let token = common
            .token_file
            .as_deref()
            .map(connect::read_token)
            .transpose()?;
        let local = || Target::Local {
            socket_dir: common.socket_dir.clone(),
        };
        // Which of them is this node's; none where no daemon answers.
        let own = Client::new(Options {
            target: local(),
            ..Options::default()
        })
        .connect()
        .ok()
        .map(|info| info.worker.to_string());
        let members = workers
            .into_iter()
            .map(|worker| {
                let is_own = own.as_ref() == Some(&worker.uuid);
                let target = match &token {
                    Some(token) if !worker.data_address.is_empty() => {
                        resolve(&worker).map(|address| Target::Remote {
                            address,
                            token: token.clone(),
                        })
                    }
                    _ if is_own => Ok(local()),
                    Some(_) => Err(format!(
                        "the worker of node {} has no TCP side: give its configuration [remote] with listen and secret_file",
                        worker.node
                    )),
                    None => Err(without_token(&worker.node)),
                };
                Member {
                    node: worker.node,
                    state: worker.state,
                    capacity_bytes: worker.capacity_bytes,
                    target,
                }
            })
            .collect();
        Ok(Self { members })
    }

    /// Those that are ready and, if any are named, are of these nodes.
    pub(crate) fn owners(&self, nodes: &[NodeName]) -> Result<Vec<usize>, Failure> {
        for node in nodes {
            let known = self.members.iter().find(|member| member.node == node.as_str());
            match known {
                Some(member) if member.is_ready() => {}
                Some(member) => {
                    let message = format!("--nodes {node}: its worker is {}, not ready", member.state);
                    return Err(Failure::new(Kind::Temporary, message));
                }
                None => {
                    let known: Vec<_> = self.members.iter().map(|member| member.node.as_str()).collect();
                    return Err(Failure::usage(format!(
                        "--nodes {node}: there is no worker of that node; there are {}",
                        shorten(&known)
                    )));
                }
            }
        }
        let named =
            |member: &Member| nodes.is_empty() || nodes.iter().any(|node| node.as_str() == member.node);
        let owners: Vec<usize> = (0..self.members.len())
            .filter(|index| self.members[*index].is_ready() && named(&self.members[*index]))
            .collect();
        if owners.is_empty() {
            let message = "no worker is ready: see `cachelet status`";
            return Err(Failure::new(Kind::Unavailable, message));
        }
        Ok(owners)
    }

    /// Fails unless a way to each of these workers is known, whether or not they answer.
    pub(crate) fn reachable(&self, members: &[usize]) -> Result<(), Failure> {
        let lacking: Vec<_> = members
            .iter()
            .map(|index| &self.members[*index])
            .filter_map(|member| {
                member
                    .target
                    .as_ref()
                    .err()
                    .map(|why| (member.node.as_str(), why))
            })
            .collect();
        match lacking.as_slice() {
            [] => Ok(()),
            [(_, why), ..] if members.len() == 1 || lacking.len() == 1 => Err(Failure::usage(why.as_str())),
            several => {
                let nodes: Vec<_> = several.iter().map(|(node, _)| *node).collect();
                Err(Failure::usage(format!(
                    "{} workers cannot be asked ({}); the first: {}",
                    nodes.len(),
                    shorten(&nodes),
                    several[0].1
                )))
            }
        }
    }
}

/// At most five of many names.
fn shorten(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{shown} and {more} more"),
        _ => shown,
    }
}

fn without_token(node: &str) -> String {
    format!(
        "the worker of node {node} is asked over TCP: pass --token-file (CACHELET_TOKEN_FILE) with the cluster's secret, \
         the file that its remote.secret_file names"
    )
}

fn resolve(worker: &service::Worker) -> Result<SocketAddr, String> {
    let failed = |why: &dyn std::fmt::Display| {
        format!(
            "the address {} of the worker of node {} cannot be used: {why}",
            worker.data_address, worker.node
        )
    };
    worker
        .data_address
        .to_socket_addrs()
        .map_err(|error| failed(&error))?
        .next()
        .ok_or_else(|| failed(&"it has no IP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(states: &[&str]) -> Fleet {
        let member = |(index, state): (usize, &&str)| Member {
            node: format!("node-{}", index + 1),
            state: (*state).to_owned(),
            capacity_bytes: 0,
            target: if index == 0 {
                Ok(Target::default())
            } else {
                Err(without_token("far"))
            },
        };
        Fleet {
            members: states.iter().enumerate().map(member).collect(),
        }
    }

    #[test]
    fn only_ready_workers_own_and_named_ones_must_be() {
        let fleet = fleet(&["ready", "lost", "ready"]);
        let named = |name: &str| fleet.owners(&[NodeName::new(name).unwrap()]);
        assert_eq!(fleet.owners(&[]).unwrap(), [0, 2]);
        assert_eq!(named("node-3").unwrap(), [2]);
        assert_eq!(named("node-2").unwrap_err().kind, Kind::Temporary);
        let unknown = named("node-4").unwrap_err();
        assert_eq!(unknown.kind, Kind::Usage);
        assert!(
            unknown.to_string().contains("node-1, node-2, node-3"),
            "{unknown}"
        );
    }

    #[test]
    fn without_the_secret_only_this_nodes_worker_is_reachable() {
        let fleet = fleet(&["ready"; 3]);
        assert!(fleet.reachable(&[0]).is_ok());
        for members in [&[0, 1][..], &[1], &[0, 1, 2]] {
            let failure = fleet.reachable(members).unwrap_err();
            assert_eq!(failure.kind, Kind::Usage);
            assert!(failure.to_string().contains("--token-file"), "{failure}");
        }
    }
}
