//! The JSON that the service speaks over HTTP, field by field.
//!
//! These types are the reference of the HTTP protocol. Requests ignore fields that they do not know, so that a newer
//! client can talk to an older service; answers may gain fields at any time. Sizes are in bytes, times are Unix
//! milliseconds, durations are milliseconds; an absent optional field and `null` mean the same.

mod request;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use request::{InvalidRequest, LocationsRequest, PathRequest, RequestLimits};

/// The answer to `POST /v1/locations`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocationsAnswer<'a> {
    /// One for each path of the request, in its order.
    pub locations: Vec<PathAnswer<'a>>,
}

/// Where one object's blocks are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathAnswer<'a> {
    /// The path as it was asked for.
    pub path: Cow<'a, str>,
    /// Whether `blocks` tile the object. If not, `reason` or `error` says why and there are no blocks.
    pub known: bool,
    /// Why nothing is known of a path that is in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What is wrong with this path of the request. Others are not affected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// The object's size: the caller's, else that of the newest generation that a worker confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The generation's etag, without quotes: the caller's, else that of the newest generation that a worker confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<Cow<'a, str>>,
    /// The cluster's block size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u64>,
    /// The object's blocks in order; together exactly `size_bytes`. An object of 0 bytes has none.
    pub blocks: Vec<BlockAnswer<'a>>,
}

/// Where one block is, or belongs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockAnswer<'a> {
    /// The block's position in the object, from 0.
    pub index: u32,
    /// Where the block begins in the object.
    pub offset: u64,
    /// The block's bytes; fewer than `block_bytes` only at the object's end.
    pub length: u64,
    /// Nodes to read it on, best first: those that hold half or more of it, else the one it is planned on. Never one
    /// outside of the request's candidates, never one whose worker is lost or draining. Empty: read it anywhere.
    pub nodes: Vec<NodeAnswer<'a>>,
}

/// A node for a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeAnswer<'a> {
    /// The node's name (`spec.nodeName`).
    pub node: Cow<'a, str>,
    /// Whether it holds the block or is where the block belongs.
    pub state: NodeState,
    /// How much of the block it holds.
    pub residency: ResidencyName,
    /// The IP of the worker's pod; empty if it did not say.
    pub pod_ip: Cow<'a, str>,
    /// The IP of the node; empty if the worker did not say.
    pub host_ip: Cow<'a, str>,
}

/// Why a node is named for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It holds half of the block or more.
    Resident,
    /// Nobody among the candidates does; by rendezvous hashing the block belongs there.
    Planned,
}

/// How much of a block a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResidencyName {
    /// Nothing.
    None,
    /// Less than half of its pages.
    Some,
    /// Half of its pages or more, not all.
    Half,
    /// Every page.
    All,
}

/// Why nothing is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No worker is registered with this replica.
    NoWorkers,
    /// No worker has a store for the path's scheme and bucket.
    UnknownStore,
    /// The request gives no `size_bytes` and no worker reports the object.
    UnknownSize,
}

/// The body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What is wrong.
    pub error: ErrorDetail,
}

/// What is wrong, for programs and for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub code: ErrorCode,
    /// For people: names the field and says what to change.
    pub message: String,
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is no JSON of the expected form, or lacks a parameter.
    BadRequest,
    /// 400: more paths or candidates than one request may have.
    TooManyPaths,
    /// In a path's `error`: not `scheme://bucket/key`. In `/v1/objects`: 400.
    InvalidPath,
    /// In a path's `error`: no strong etag.
    InvalidEtag,
    /// In a path's `error`: the request's blocks are more than one answer may have; ask with fewer paths.
    TooManyBlocks,
    /// 404: no such page.
    NotFound,
    /// 405: the page exists, this method does not.
    MethodNotAllowed,
    /// 408: the request's body did not arrive in time.
    Timeout,
    /// 413: the request's body is longer than the service reads.
    BodyTooLarge,
    /// 500: a defect of the service.
    Internal,
}

/// The answer to `GET /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodesAnswer {
    /// Every worker that this replica knows, by node name; lost ones for as long as they keep their rank.
    pub nodes: Vec<NodeEntry>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The node's name (`spec.nodeName`).
    pub node: String,
    /// The worker's UUID (`metadata.uid` of its pod).
    pub uuid: String,
    /// The worker's epoch: greater at every start.
    pub epoch: u64,
    /// Whether it is in answers.
    pub state: WorkerStateName,
    /// Whether a full report of it is complete; until then some of what it holds may be missing in answers.
    pub synced: bool,
    /// How long ago it last said anything, in milliseconds; its lease is `lease_ms` of `/status.json`.
    pub lease_age_ms: u64,
    /// When it registered, Unix milliseconds.
    pub registered_unix_ms: u64,
    /// The worker's version.
    pub version: String,
    /// `host:port` of its TCP side; empty: off.
    pub data_address: String,
    /// `host:port` of its admin HTTP; empty: off.
    pub admin_address: String,
    /// Its zone; empty: none.
    pub zone: String,
    /// The IP of its pod.
    pub pod_ip: String,
    /// The IP of its node.
    pub host_ip: String,
    /// Names of its stores.
    pub stores: Vec<String>,
    /// How much it may cache.
    pub capacity_bytes: u64,
    /// How much it caches.
    pub used_bytes: u64,
    /// Bytes of evicted files that readers still hold.
    pub unlinked_held_bytes: u64,
    /// Blocks it holds anything of.
    pub blocks: u64,
    /// Client sessions.
    pub sessions: u32,
    /// Bytes read from its own disks since it started.
    pub local_bytes: u64,
    /// Bytes read from peers since it started.
    pub peer_bytes: u64,
    /// Bytes read from the origin since it started.
    pub origin_bytes: u64,
    /// Whether it hands out descriptors.
    pub grants_enabled: bool,
}

/// Whether a worker is in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerStateName {
    /// It is.
    Ready,
    /// It is about to stop: not any more.
    Draining,
    /// Its lease ended: not any more; it keeps its rank in the plan for a while.
    Lost,
}

/// The answer to `GET /v1/objects?path=scheme://bucket/key` (percent-encoded; `+` stands for itself).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectAnswer {
    /// The path as it was asked for.
    pub path: String,
    /// The object's key in the index, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_id: Option<String>,
    /// The identity of the store that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Whether any worker holds anything of it.
    pub known: bool,
    /// Why nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The newest generation's etag, without quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The newest generation's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// When a worker last confirmed that generation, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_unix_ms: Option<u64>,
    /// The cluster's block size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u64>,
    /// Who holds anything of it, by node name; draining workers too.
    pub holders: Vec<HolderEntry>,
}

/// What one worker holds of an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HolderEntry {
    /// The node's name.
    pub node: String,
    /// The worker's UUID.
    pub uuid: String,
    /// Runs of adjacent blocks that are held alike, in order. Blocks that are not named are not held.
    pub runs: Vec<BlockRun>,
}

/// Adjacent blocks that are held alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockRun {
    /// The first block.
    pub first: u32,
    /// How many blocks.
    pub count: u32,
    /// How much of each is held.
    pub residency: ResidencyName,
}

/// The answer to `GET /status.json`: this replica at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// The service's version.
    pub version: String,
    /// How long this replica has been running, in milliseconds.
    pub uptime_ms: u64,
    /// Whether it is ready to answer, as `/readyz` says.
    pub ready: bool,
    /// What is missing if it is not, or a sentence on what there is.
    pub ready_message: String,
    /// Lease of workers.
    pub lease_ms: u64,
    /// The cluster's block size; absent without workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u64>,
    /// Objects in the index.
    pub objects: u64,
    /// Entries of the index: one for each worker and 64 blocks of an object.
    pub segments: u64,
    /// Memory of the index.
    pub index_bytes: u64,
    /// Every worker, as in `/v1/nodes`.
    pub nodes: Vec<NodeEntry>,
}
