//! The command line, parsed into types, with help that teaches.

#![allow(clippy::doc_markdown, reason = "these texts are shown in a terminal")]

use std::net::SocketAddr;
use std::path::PathBuf;

use bytesize::ByteSize;
use cachelet_protocol::ids::{Etag, NodeName, ObjectPath};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::place::Place;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 64 wrong arguments or configuration, 66 no such object, 69 no daemon or service reachable,
70 internal failure, 75 may work if tried again, 77 access denied.";

/// Reads, locates, loads and inspects objects that Cachelet caches, and runs a cluster on one machine.
#[derive(Debug, Parser)]
#[command(name = "cachelet", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), infer_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cachelet dev --nodes 2 --store s3 --s3-endpoint http://127.0.0.1:9000
      A cluster of two workers on this machine, in front of an S3 server.
  cachelet cat s3://lake/table/part-0.parquet --to part-0.parquet --stats
      Read an object through this node's daemon, and say where its bytes came from.
  cachelet locate s3://lake/table/part-0.parquet
      Which nodes hold its blocks.
  cachelet load s3://lake/table/ --token-file secret
      Warm a table on the nodes where its blocks belong; `cachelet free` throws it out again.
  cachelet status --watch
      The workers, what they hold and how they are used, once a second.";

/// Arguments that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Text for people, or JSON for programs.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Directory of the daemon's socket.
    #[arg(
        long,
        global = true,
        env = "CACHELET_SOCKET_DIR",
        value_name = "DIR",
        default_value = cachelet_client::DEFAULT_SOCKET_DIR
    )]
    pub(crate) socket_dir: PathBuf,
    /// Ask this worker over TCP instead of this node's daemon: tcp://ADDRESS:PORT.
    #[arg(long, global = true, value_name = "tcp://IP:PORT", value_parser = parse_worker, requires = "token_file")]
    pub(crate) worker: Option<SocketAddr>,
    /// File with the cluster's shared secret, for --worker, load and free.
    #[arg(long, global = true, env = "CACHELET_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Address of the locality service's HTTP side. Default: what this node's daemon says.
    #[arg(
        long,
        global = true,
        env = "CACHELET_SERVICE",
        value_name = "http://HOST:PORT"
    )]
    pub(crate) service: Option<String>,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read an object through the cache and write its bytes to standard output or a file.
    #[command(after_help = format!("{CAT_EXAMPLES}\n\n{EXIT_CODES}"))]
    Cat(Cat),
    /// Show an object's generation, size, blocks, and where they are.
    Stat(Stat),
    /// Show which nodes hold the blocks of objects, as schedulers ask for it.
    #[command(after_help = LOCATE_EXAMPLES)]
    Locate(Locate),
    /// Bring objects into the cache before they are read, on the nodes where their blocks belong.
    #[command(after_help = format!("{LOAD_EXAMPLES}\n\n{EXIT_CODES}"))]
    Load(Load),
    /// Throw objects out of the cache, on every node. The store keeps them; readers go on with what they hold.
    #[command(after_help = format!("{FREE_EXAMPLES}\n\n{EXIT_CODES}"))]
    Free(Free),
    /// Show the workers of the cluster, or one of them in full.
    Status(Status),
    /// Run a whole cluster on this machine until Ctrl-C: the locality service and workers on 127.0.0.2, 127.0.0.3, ...
    #[command(after_help = format!("{DEV_EXAMPLES}\n\n{EXIT_CODES}"))]
    Dev(Dev),
    /// Ties a program to this one's life and becomes it (used by `dev`).
    #[command(hide = true)]
    DevChild(DevChild),
}

const CAT_EXAMPLES: &str = "\
Examples:
  cachelet cat s3://lake/table/part-0.parquet > part-0.parquet
  cachelet cat s3a://lake/table/part-0.parquet --range 0-1023 | xxd
      The first 1024 bytes (both ends count, as in HTTP); `100-` means from byte 100 on, `-8` the last 8 bytes.
  cachelet cat s3://lake/data --worker tcp://10.0.0.7:7001 --token-file secret --stats > /dev/null
      From a worker of another node.

Where the daemon asks for proof that you may read the object (authorization = \"caller\"), the object's etag and size are
asked for with your own credentials (AWS_* variables, --endpoint, --region), or taken from --etag and --size.";

const LOCATE_EXAMPLES: &str = "\
Examples:
  cachelet locate s3://lake/table/part-0.parquet s3://lake/table/part-1.parquet
  cachelet locate s3://lake/table/part-0.parquet --candidates node-1,node-2
      Only these nodes count, as if the application ran on them; where none holds a block, the one planned for it.";

const LOAD_EXAMPLES: &str = "\
Examples:
  cachelet load s3://lake/tables/orders/ --token-file secret
      Every object beneath the prefix, each block on the node that schedulers are told of. What is there already is left alone.
  cachelet load s3://lake/tables/orders/ --token-file secret --dry-run
      What that would be, by node.
  cachelet load s3://lake/a.parquet s3://lake/b.parquet --replication 2 --nodes node-1,node-2
      Two objects, both on two nodes.
  cachelet load s3://lake/tables/ --bandwidth 200MB/s --output json --token-file secret
      For a job before the morning's queries: a bounded rate, and one JSON object at the end.

The workers fetch the bytes themselves; none come here. They are asked over TCP, with the cluster's secret in --token-file
(this node's alone also over its socket). A prefix is listed with your own credentials (AWS_* variables, --endpoint,
--region), and the etags and sizes of that listing are what is loaded: what you may not read is not loaded.

Ctrl-C stops it; what is loaded by then stays, and the same command goes on from there.";

const FREE_EXAMPLES: &str = "\
Examples:
  cachelet free s3://lake/tables/orders/ --token-file secret
      Every worker forgets all objects beneath the prefix, in all their generations.
  cachelet free s3://lake/tables/orders/part-0.parquet --dry-run --token-file secret
      How much of one object which node would forget.

No right to read is needed, nor that the objects still exist. Workers are asked over TCP, with the cluster's secret in
--token-file (this node's alone also over its socket).";

const DEV_EXAMPLES: &str = "\
Examples:
  cachelet dev --store file --root /data
      Files of /data as objects file://lake/...
  cachelet dev --nodes 3 --store s3 --s3-endpoint http://127.0.0.1:9000 --dir /var/tmp/cachelet
      Three workers in front of an S3 server, with credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. What they
      cache is kept in --dir and found again at the next start.

As root, block files are granted through read-only mounts, as in Kubernetes; otherwise without that protection.";

/// How to open an object.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// The etag to read, if known: the object's generation, with --size.
    #[arg(long, requires = "size", value_parser = |text: &str| Etag::from_header(text))]
    pub(crate) etag: Option<Etag>,
    /// The size in bytes that goes with --etag.
    #[arg(long, requires = "etag", value_name = "BYTES")]
    pub(crate) size: Option<u64>,
    #[command(flatten)]
    pub(crate) origin: Origin,
}

/// Where the store is, for what is asked of it with your own credentials.
#[derive(Debug, Args)]
pub(crate) struct Origin {
    /// The store's endpoint, where you are asked to prove that you may read an object, and where prefixes are listed.
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// The store's region, for the same.
    #[arg(long, env = "AWS_REGION", value_name = "REGION")]
    pub(crate) region: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Objects (s3://bucket/key), or all beneath a prefix (s3://bucket/prefix/).
    #[arg(required = true, value_name = "PATH|PREFIX/")]
    pub(crate) places: Vec<Place>,
    /// Take every path for a prefix, as if it ended with a slash.
    #[arg(long)]
    pub(crate) recursive: bool,
    /// How many nodes are to hold each block. The second copy comes from the first, not from the store.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(crate) replication: u8,
    /// Only these nodes are loaded. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "NODE,...")]
    pub(crate) nodes: Vec<NodeName>,
    /// The most to ask for in a second, over all nodes, such as 200MB/s. Default: no limit.
    #[arg(long, value_name = "BYTES/s", value_parser = parse_bandwidth)]
    pub(crate) bandwidth: Option<ByteSize>,
    /// Requests of at most 8 MiB under way at each node. A worker takes up four of them at a time, whoever sent them.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) concurrency: u8,
    /// Say what would be loaded where, and load nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) origin: Origin,
}

#[derive(Debug, Args)]
pub(crate) struct Free {
    /// Objects (s3://bucket/key), or all beneath a prefix (s3://bucket/prefix/), whether or not the store still has them.
    #[arg(required = true, value_name = "PATH|PREFIX/")]
    pub(crate) places: Vec<Place>,
    /// Take every path for a prefix, as if it ended with a slash.
    #[arg(long)]
    pub(crate) recursive: bool,
    /// Say what would be forgotten, and forget nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// The object: s3://bucket/key (or s3a, s3n, oss, file).
    pub(crate) path: ObjectPath,
    /// Bytes FIRST-LAST (both count), FIRST- or -LENGTH.
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub(crate) range: Option<ByteRange>,
    /// Write to this file, which appears when it is complete.
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,
    /// Check every chunk's checksum.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Say on standard error where the bytes came from.
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) access: Access,
}

#[derive(Debug, Args)]
pub(crate) struct Stat {
    /// The object: s3://bucket/key (or s3a, s3n, oss, file).
    pub(crate) path: ObjectPath,
    #[command(flatten)]
    pub(crate) access: Access,
}

#[derive(Debug, Args)]
pub(crate) struct Locate {
    /// The objects.
    #[arg(required = true)]
    pub(crate) paths: Vec<ObjectPath>,
    /// Only these nodes count. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "NODE,...")]
    pub(crate) candidates: Vec<NodeName>,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Show this node's worker in full: what it holds, reserves and still has to give back, what is on its way, its stores.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeName>,
    /// Show it again every so many seconds, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    pub(crate) watch: Option<u32>,
}

/// What `dev`'s workers read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// An S3 server, or Amazon S3.
    S3,
    /// A directory of this machine.
    File,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct Dev {
    /// How many workers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) nodes: u8,
    /// Where everything is kept. Default: a temporary directory, removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the temporary directory.
    #[arg(long)]
    pub(crate) keep: bool,
    /// What to cache. Default: file if --root is given, else s3.
    #[arg(long, value_enum)]
    pub(crate) store: Option<StoreKind>,
    /// The S3 server. Default: Amazon S3 in --region.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    pub(crate) s3_endpoint: Option<String>,
    /// The region that requests are signed for.
    #[arg(long, env = "AWS_REGION", value_name = "REGION", default_value = "us-east-1")]
    pub(crate) region: String,
    /// Bucket names in the path. Default with --s3-endpoint.
    #[arg(long, conflicts_with = "virtual_hosted")]
    pub(crate) path_style: bool,
    /// Bucket names in the host.
    #[arg(long)]
    pub(crate) virtual_hosted: bool,
    /// The directory whose files are the objects, with --store file.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// The store's name; with --store file also the bucket: file://NAME/path.
    #[arg(long, value_name = "NAME", default_value = "lake")]
    pub(crate) store_name: String,
    /// Block size: a power of two from 1MiB to 128MiB.
    #[arg(long, alias = "block-size", value_name = "SIZE", default_value = "128MiB")]
    pub(crate) block_bytes: ByteSize,
    /// What each worker may keep.
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    pub(crate) quota: ByteSize,
    /// Where the locality service's HTTP side listens. Default: 127.0.0.1, any port.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub(crate) http: SocketAddr,
    /// Ask for proof of the right to read, as clusters of several tenants do.
    #[arg(long)]
    pub(crate) caller_authorization: bool,
    /// Grant block files without read-only mounts, even as root.
    #[arg(long)]
    pub(crate) unprotected: bool,
    /// Write addresses, directories and process ids to this file, as JSON, once all is ready.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DevChild {
    /// Process id of the `dev` that starts it.
    #[arg(long)]
    pub(crate) parent: i32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// A range as HTTP spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// From the first to the last byte, both included.
    Between(u64, u64),
    /// From a byte on.
    From(u64),
    /// The last so many bytes.
    Last(u64),
}

impl ByteRange {
    /// The range within an object of `size_bytes`; `None` if it begins behind the end.
    pub(crate) fn within(self, size_bytes: u64) -> Option<std::ops::Range<u64>> {
        let range = match self {
            Self::Between(first, last) => first..last.saturating_add(1).min(size_bytes),
            Self::From(first) => first..size_bytes,
            Self::Last(count) => size_bytes.saturating_sub(count)..size_bytes,
        };
        (range.start < size_bytes || range.start == 0).then_some(range)
    }
}

impl std::str::FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is no range: expected FIRST-LAST, FIRST- or -LENGTH, in bytes");
        let (first, last) = text.split_once('-').ok_or_else(expected)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| expected());
        match (first, last) {
            ("", last) => Ok(Self::Last(number(last)?)),
            (first, "") => Ok(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("{text:?} ends before it begins"));
                }
                Ok(Self::Between(first, last))
            }
        }
    }
}

/// `200MB/s`; the time may be left out.
fn parse_bandwidth(text: &str) -> Result<ByteSize, String> {
    let expected =
        || format!("{text:?} is no bandwidth: expected bytes a second, such as 200MB/s or 1.5GiB/s");
    let bytes: ByteSize = text
        .strip_suffix("/s")
        .unwrap_or(text)
        .parse()
        .map_err(|_| expected())?;
    if bytes.as_u64() < MIN_BANDWIDTH {
        return Err(format!(
            "{text:?} is too little: pages have 1 MiB, and 64KiB/s brings one in 16 seconds"
        ));
    }
    Ok(bytes)
}

/// Below this a single page takes longer than anybody waits for it.
const MIN_BANDWIDTH: u64 = 64 << 10;

fn parse_worker(text: &str) -> Result<SocketAddr, String> {
    let expected = || format!("{text:?} is no worker: expected tcp://IP:PORT");
    text.strip_prefix("tcp://")
        .ok_or_else(expected)?
        .parse()
        .map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn ranges_are_read_as_http_spells_them() {
        let range = |text: &str| text.parse::<ByteRange>().unwrap().within(100);
        assert_eq!(range("0-9"), Some(0..10));
        assert_eq!(range("90-200"), Some(90..100));
        assert_eq!(range("99-"), Some(99..100));
        assert_eq!(range("-8"), Some(92..100));
        assert_eq!(range("-800"), Some(0..100));
        assert_eq!(range("100-"), None);
        for bad in ["", "5", "5-4", "a-b", "--5", "-"] {
            assert!(bad.parse::<ByteRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bandwidth_is_bytes_a_second() {
        assert_eq!(parse_bandwidth("200MB/s"), Ok(ByteSize::mb(200)));
        assert_eq!(parse_bandwidth("1.5GiB/s"), Ok(ByteSize::mib(1536)));
        assert_eq!(parse_bandwidth("64KiB"), Ok(ByteSize::kib(64)));
        for bad in ["", "fast", "0", "1KB/s", "10MB/m", "-5MB/s"] {
            assert!(parse_bandwidth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_worker_is_an_address_behind_tcp() {
        assert_eq!(
            parse_worker("tcp://10.0.0.7:7001"),
            Ok(([10, 0, 0, 7], 7001).into())
        );
        assert!(parse_worker("10.0.0.7:7001").is_err() && parse_worker("tcp://node:7001").is_err());
    }
}
