//! Why a host does not do something.

use slat::edit::Error;

use super::parent::ParentError;
use super::spa::NotEnough;
use crate::hypervisor::Refusal;

/// Why a host does not do something.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The hypervisor does not start on the processor.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The sizes make no host.
    #[error("host {name}: {text}")]
    Spec {
        /// The host.
        name: String,
        /// What is wrong.
        text: String,
    },
    /// There is not enough physical memory.
    #[error(
        "partition {partition} does not start on host {host}: {short}. Memory is given at power-on \
         and not oversubscribed; {remedy}"
    )]
    NotEnough {
        /// The partition.
        partition: String,
        /// The host.
        host: String,
        /// How much is missing.
        short: NotEnough,
        /// What can be done.
        remedy: String,
    },
    /// There is one of this name.
    #[error("host {host} has a partition {partition} already")]
    Taken {
        /// The host.
        host: String,
        /// The partition.
        partition: String,
    },
    /// There is none of this name.
    #[error("host {host} has no partition {partition}")]
    NoPartition {
        /// The host.
        host: String,
        /// The partition.
        partition: String,
    },
    /// What was asked of a partition makes none.
    #[error("partition {partition}: {text}")]
    Partition {
        /// The partition.
        partition: String,
        /// What is wrong.
        text: String,
    },
    /// The hypervisor's memory for tables is full, or an edit failed otherwise.
    #[error("host {host}, tables of partition {partition}: {error}")]
    Tables {
        /// The host.
        host: String,
        /// The partition.
        partition: String,
        /// Why.
        error: Error,
    },
    /// The guest cannot go on.
    #[error("the guest of partition {partition} stopped after {steps} steps: {text}")]
    Guest {
        /// The partition.
        partition: String,
        /// How far it came.
        steps: u64,
        /// Why.
        text: String,
    },
    /// The parent.
    #[error("host {host}: {error}")]
    Parent {
        /// The host.
        host: String,
        /// Why.
        error: ParentError,
    },
}
