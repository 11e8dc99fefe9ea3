//! From the command line to a client and an open object.

use std::ops::Range;
use std::path::Path;

use cachelet_client::{Client, Error, Identity, Object, OpenRequest, Options, Target};
use cachelet_protocol::ids::{Generation, ObjectPath};
use cachelet_protocol::wire::BypassReason;

use crate::arguments::{Access, Common};
use crate::failure::{Failure, Kind};
use crate::proof;

/// A client for the daemon that the command line names.
pub(crate) fn client(common: &Common, verify_reads: bool) -> Result<Client, Failure> {
    let target = match common.worker {
        Some(address) => Target::Remote {
            address,
            token: token(common.token_file.as_deref())?,
        },
        None => Target::Local {
            socket_dir: common.socket_dir.clone(),
        },
    };
    Ok(Client::new(Options {
        target,
        identity: Identity {
            client: concat!("cachelet/", env!("CARGO_PKG_VERSION")).into(),
            ..Identity::default()
        },
        verify_reads,
        readahead_bytes: 16 << 20,
        ..Options::default()
    }))
}

fn token(file: Option<&Path>) -> Result<String, Failure> {
    let file = file.ok_or_else(|| Failure::usage("--worker needs --token-file with the cluster's secret"))?;
    read_token(file)
}

/// The cluster's secret.
pub(crate) fn read_token(file: &Path) -> Result<String, Failure> {
    let token = std::fs::read_to_string(file)
        .map_err(|error| Failure::io(format_args!("reading --token-file {}", file.display()), &error))?;
    Ok(token.trim().to_owned())
}

/// Opens an object; where the daemon asks for proof of the right to read, gives it.
pub(crate) fn open(
    client: &Client,
    path: &ObjectPath,
    access: &Access,
    first_range: Option<Range<u64>>,
) -> Result<Object, Failure> {
    let given = match (&access.etag, access.size) {
        (Some(etag), Some(size_bytes)) => Some(Generation {
            etag: etag.clone(),
            size_bytes,
        }),
        _ => None,
    };
    let mut request = OpenRequest {
        generation: given,
        first_range,
        ..OpenRequest::new(path.clone())
    };
    match client.open(&request) {
        Err(Error::Bypass {
            reason: BypassReason::GenerationRequired,
            ..
        }) if request.generation.is_none() => {}
        Err(error) if matches!(error, Error::Bypass { .. }) => {
            let kind = Failure::from(error.clone()).kind;
            return Err(Failure::new(kind, format!("reading {path}: {error}")));
        }
        Err(error) => return Err(error.into()),
        Ok(object) => return Ok(object),
    }
    request.generation = Some(proof::generation(
        path,
        &access.origin,
        "pass --etag and --size instead",
    )?);
    client.open(&request).map_err(|error| match error {
        error @ Error::Bypass { .. } => Failure::new(Kind::Unavailable, format!("reading {path}: {error}")),
        error => error.into(),
    })
}
