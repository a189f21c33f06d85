//! Measurements and probes on `/dev/kvm`.
//!
//! ```
//! match slat_kvm::probe() {
//!     Ok(kvm) => println!("KVM API {}, a machine can be made: {}", kvm.api_version, kvm.create_vm.is_ok()),
//!     Err(why) => println!("no KVM to ask: {why}"),
//! }
//! ```
#![deny(unsafe_code)]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod counted;
mod probe;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod prober;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod processor;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "a guest's memory is mapped by the kernel")]
mod region;
pub mod script;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "the library for KVM has no such request")]
mod stats;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod translator;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use counted::{Counted, Paging, count, paging};
pub use probe::{Capability, Probe, Unavailable, probe};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use processor::{PagingState, Processor};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use translator::Translator;
