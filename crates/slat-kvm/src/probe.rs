//! What `/dev/kvm` says of itself, without starting a virtual machine's processor.

use std::fmt;
use std::io;

/// What `/dev/kvm` answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `KVM_GET_API_VERSION`; 12 since Linux 2.6.22, and the kernel promises that it stays 12.
    pub api_version: i32,
    /// Whether `KVM_CREATE_VM` made a machine (which is closed again at once), or the reason why not.
    pub create_vm: Result<(), String>,
    /// `KVM_CHECK_EXTENSION` for each of [`Capability::ALL`], in that order; 0 is "no".
    pub capabilities: Vec<(Capability, i32)>,
    /// The VMX capability registers that KVM would offer to a guest, as (index, value): the feature
    /// MSRs 0x480..=0x491 of `KVM_GET_MSRS` on the device itself. Empty where KVM offers none,
    /// as it does with nested virtualization off and on processors without VMX.
    pub vmx_msrs: Vec<(u32, u64)>,
}

/// The capabilities that bear on second-level address translation.
///
/// Numbers as in `include/uapi/linux/kvm.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// State of a guest that is a hypervisor can be saved: nested virtualization is supported.
    NestedState = 157,
    /// AArch64: the value is the widest guest-physical address, in bits.
    ArmVmIpaSize = 165,
    /// Guest memory can be mapped ahead of its first use. x86 KVM offers it only where it uses EPT or NPT.
    PreFaultMemory = 236,
}

impl Capability {
    /// Every capability that [`probe`] asks for.
    pub const ALL: [Capability; 3] =
        [Capability::NestedState, Capability::ArmVmIpaSize, Capability::PreFaultMemory];

    /// The number that `KVM_CHECK_EXTENSION` takes.
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// Why `/dev/kvm` could not be asked.
#[derive(Debug)]
pub enum Unavailable {
    /// There is no such device: the kernel has no KVM, or KVM refused this processor.
    Absent,
    /// The device exists, but this user may not open it.
    Denied,
    /// The device exists and failed.
    Failed(io::Error),
    /// This build of slat knows no KVM for its system and processor.
    Unsupported,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::Absent => write!(f, "/dev/kvm does not exist"),
            Unavailable::Denied => write!(f, "/dev/kvm may not be opened by this user"),
            Unavailable::Failed(error) => write!(f, "/dev/kvm: {error}"),
            Unavailable::Unsupported => {
                write!(f, "KVM is known to slat on Linux on x86-64, AArch64 and RISC-V only")
            }
        }
    }
}

impl std::error::Error for Unavailable {}

/// What the number of an error says of the device that could not be opened.
impl From<i32> for Unavailable {
    fn from(errno: i32) -> Unavailable {
        let error = io::Error::from_raw_os_error(errno);
        match error.kind() {
            io::ErrorKind::NotFound => Unavailable::Absent,
            io::ErrorKind::PermissionDenied => Unavailable::Denied,
            _ => Unavailable::Failed(error),
        }
    }
}

/// Asks `/dev/kvm` for its version, for a virtual machine, and for the capabilities that bear on
/// second-level address translation.
///
/// # Errors
/// [`Unavailable`], when the device is missing, may not be opened, or does not answer.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
pub fn probe() -> Result<Probe, Unavailable> {
    use kvm_ioctls::Kvm;

    let kvm = Kvm::new().map_err(|error| Unavailable::from(error.errno()))?;
    let api_version = kvm.get_api_version();
    if api_version < 0 {
        return Err(Unavailable::Failed(io::Error::other("it does not answer as KVM does")));
    }
    let create_vm = kvm.create_vm().map(drop).map_err(|error| error.to_string());
    let capabilities = Capability::ALL
        .into_iter()
        .map(|capability| (capability, kvm.check_extension_raw(capability.number().into())))
        .collect();
    Ok(Probe { api_version, create_vm, capabilities, vmx_msrs: vmx_msrs(&kvm) })
}

/// As above, where there is no KVM to ask.
///
/// # Errors
/// Always [`Unavailable::Unsupported`].
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
pub fn probe() -> Result<Probe, Unavailable> {
    Err(Unavailable::Unsupported)
}

/// Intel SDM volume 3, appendix A: the VMX capability registers are 0x480..=0x491.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn vmx_msrs(kvm: &kvm_ioctls::Kvm) -> Vec<(u32, u64)> {
    use kvm_bindings::{Msrs, kvm_msr_entry};

    let Ok(offered) = kvm.get_msr_feature_index_list() else { return Vec::new() };
    let entries: Vec<kvm_msr_entry> = offered
        .as_slice()
        .iter()
        .filter(|index| (0x480..=0x491).contains(*index))
        .map(|&index| kvm_msr_entry { index, ..Default::default() })
        .collect();
    if entries.is_empty() {
        return Vec::new();
    }
    let Ok(mut msrs) = Msrs::from_entries(&entries) else { return Vec::new() };
    // KVM stops at the first register that it cannot give and returns how many it gave.
    let Ok(given) = kvm.get_msrs(&mut msrs) else { return Vec::new() };
    msrs.as_slice().iter().take(given).map(|msr| (msr.index, msr.data)).collect()
}

#[cfg(all(target_os = "linux", any(target_arch = "aarch64", target_arch = "riscv64")))]
fn vmx_msrs(_kvm: &kvm_ioctls::Kvm) -> Vec<(u32, u64)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on machines with and without KVM: each answer must be consistent in itself.
    #[test]
    fn the_answer_is_consistent() {
        match probe() {
            Ok(kvm) => {
                assert_eq!(kvm.api_version, 12);
                assert_eq!(kvm.capabilities.len(), Capability::ALL.len());
                assert!(kvm.vmx_msrs.iter().all(|(index, _)| (0x480..=0x491).contains(index)));
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}
