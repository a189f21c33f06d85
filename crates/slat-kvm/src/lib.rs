//! Measurements and probes on `/dev/kvm`.
//!
//! ```
//! match slat_kvm::probe() {
//!     Ok(kvm) => println!("KVM API {}, a machine can be made: {}", kvm.api_version, kvm.create_vm.is_ok()),
//!     Err(why) => println!("no KVM to ask: {why}"),
//! }
//! ```
#![forbid(unsafe_code)]

mod probe;

pub use probe::{Capability, Probe, Unavailable, probe};
