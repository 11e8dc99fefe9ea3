//! A worker that holds something of a block, and how asking it for that can fail.

use std::io;
use std::time::Duration;

use cachelet_protocol::block::PageSet;
use cachelet_protocol::residency::Residency;
use cachelet_protocol::wire::{Code, DecodeError};

use crate::connection::ReadError;
use crate::metrics::Trouble;

/// Why a peer gave no pages.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("no byte within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the peer answered {code}: {message}")]
    Refused { code: Code, message: String },
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the peer sent a message that cannot be read: {0}")]
    Decode(#[from] DecodeError),
    #[error("the peer is left out: it did not answer another fetch")]
    LeftOut,
}

impl Error {
    /// What it says about the peer; `None` if the peer answered, or was not waited for.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Timeout(_) => Some(Trouble::Silent),
            Self::Io(_) | Self::Read(_) | Self::Protocol(_) | Self::Decode(_) => Some(Trouble::Broken),
            Self::Refused { .. } | Self::LeftOut => None,
        }
    }
}

/// A worker that holds something of a block.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) node: String,
    pub(super) address: String,
    pub(super) residency: Residency,
}

impl Holder {
    #[cfg(test)]
    pub(super) fn at(address: &str) -> Self {
        Self {
            node: "a peer".to_owned(),
            address: address.to_owned(),
            residency: Residency::All,
        }
    }

    /// The pages worth asking it for. A holder of some pages is asked for all: it sends what it has, in order, and says
    /// where it stops.
    pub(super) fn pages_of(&self, block_length: u64) -> PageSet {
        if self.residency == Residency::None {
            PageSet::EMPTY
        } else {
            PageSet::all(block_length)
        }
    }
}
