//! What the harness knows of each format.

use slat::Permissions;
use slat::edit::{Encode, arm32 as short, arm64, ept, riscv, x86};
use slat::format::arm32;
use slat::format::arm64::{Stage1, Stage2};
use slat::format::ept::Ept;
use slat::format::npt::Npt;
use slat::format::riscv::{Scheme, Sv};
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::Long;
use slat::format::x86::pae::Pae;
use slat::memory_type::riscv::Pbmt;
use slat::memory_type::x86::Type;

/// What the harness must know of a format.
pub(crate) trait Subject: Encode {
    fn attributes_numbered(&self, n: u8) -> Self::Attributes;
    fn memory_numbered(&self, n: u8) -> Self::Memory;
    fn permissions_numbered(&self, n: u8) -> Permissions;
    /// With these permissions, as `protect` leaves them.
    fn protected(&self, attributes: Self::Attributes, to: Permissions) -> Self::Attributes;
    fn retyped(&self, attributes: Self::Attributes, to: Self::Memory) -> Self::Attributes;
    /// Without accessed and dirty state.
    fn timeless(&self, attributes: Self::Attributes) -> Self::Attributes;
    fn grants(&self, attributes: Self::Attributes) -> [bool; 5];
    /// All but the grants.
    fn rest(&self, attributes: Self::Attributes) -> Self::Attributes;
}

pub(crate) fn permissions(n: u8) -> Permissions {
    [(true, true, true), (true, false, false), (true, true, false), (true, false, true)]
        .map(|(read, write, execute)| Permissions { read, write, execute })[usize::from(n & 3)]
}

impl Subject for Ept {
    fn attributes_numbered(&self, n: u8) -> ept::Attributes {
        let memory_type = [Type::Wb, Type::Uc, Type::Wt, Type::Wp][usize::from(n >> 2 & 3)];
        let mut attributes = ept::Attributes::new(permissions(n), memory_type);
        attributes.user_execute = self.features().mode_based_execute && n & 16 != 0;
        attributes.suppress_ve = n & 32 != 0;
        attributes.memory.ignore_pat = n & 64 != 0;
        attributes
    }
    fn memory_numbered(&self, n: u8) -> ept::Memory {
        self.attributes_numbered(n).memory
    }
    fn permissions_numbered(&self, n: u8) -> Permissions {
        permissions(n)
    }
    fn protected(&self, mut attributes: ept::Attributes, to: Permissions) -> ept::Attributes {
        attributes.permissions = to;
        attributes.user_execute = self.features().mode_based_execute && to.execute;
        attributes
    }
    fn retyped(&self, mut attributes: ept::Attributes, to: ept::Memory) -> ept::Attributes {
        attributes.memory = to;
        attributes
    }
    fn timeless(&self, mut attributes: ept::Attributes) -> ept::Attributes {
        (attributes.accessed, attributes.dirty) = (false, false);
        attributes
    }
    fn grants(&self, attributes: ept::Attributes) -> [bool; 5] {
        let Permissions { read, write, execute } = attributes.permissions;
        [read, write, execute, attributes.user_execute, false]
    }
    fn rest(&self, mut attributes: ept::Attributes) -> ept::Attributes {
        attributes.permissions = Permissions::default();
        attributes.user_execute = false;
        self.timeless(attributes)
    }
}

macro_rules! x86_subject {
    ($format:ty, $nx:expr, $user_only:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> x86::Attributes {
                let mut attributes = x86::Attributes::new(self.permissions_numbered(n));
                attributes.pat = x86::Pat(n >> 2 & 7);
                attributes.user = $user_only || n & 32 != 0;
                attributes.global = n & 64 != 0;
                attributes
            }
            fn memory_numbered(&self, n: u8) -> x86::Pat {
                x86::Pat(n & 7)
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                let permissions = permissions(n);
                Permissions { execute: permissions.execute || !$nx, ..permissions }
            }
            fn protected(&self, mut a: x86::Attributes, to: Permissions) -> x86::Attributes {
                a.permissions = to;
                a
            }
            fn retyped(&self, mut a: x86::Attributes, to: x86::Pat) -> x86::Attributes {
                a.pat = to;
                a
            }
            fn timeless(&self, mut a: x86::Attributes) -> x86::Attributes {
                (a.accessed, a.dirty) = (false, false);
                a
            }
            fn grants(&self, a: x86::Attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, a.user, false]
            }
            fn rest(&self, mut a: x86::Attributes) -> x86::Attributes {
                a.permissions = Permissions::default();
                a.user = false;
                self.timeless(a)
            }
        }
    };
}

x86_subject!(Long, true, false);
x86_subject!(Pae, true, false);
x86_subject!(Legacy, false, false);
x86_subject!(Npt, true, true);
x86_subject!(x86::Npt32, false, true);

macro_rules! arm_subject {
    ($format:ty, $attributes:ident, $memories:expr, $plain:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> arm64::$attributes {
                let plain: fn(Permissions, u8, u8) -> arm64::$attributes = $plain;
                let memory = n >> 2 & $memories;
                let mut attributes = plain(self.permissions_numbered(n), memory, n);
                if self.geometry().is_lpa2() {
                    attributes.memory.shareability = 0;
                }
                attributes.tracked = attributes.permissions.write && n & 64 != 0;
                attributes
            }
            fn memory_numbered(&self, n: u8) -> arm64::Memory {
                let shareability =
                    if self.geometry().is_lpa2() { 0 } else { [0, 2, 3, 3][n as usize & 3] };
                arm64::Memory { attributes: n >> 2 & $memories, shareability }
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                permissions(n)
            }
            fn protected(&self, mut a: arm64::$attributes, to: Permissions) -> arm64::$attributes {
                a.tracked &= to.write;
                a.permissions = to;
                self.executable(a, to.execute)
            }
            fn retyped(&self, mut a: arm64::$attributes, to: arm64::Memory) -> arm64::$attributes {
                a.memory = to;
                a
            }
            fn timeless(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                (a.accessed, a.dirty) = (false, false);
                a
            }
            fn grants(&self, a: arm64::$attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, self.other_execution(a), false]
            }
            fn rest(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                a.permissions = Permissions::default();
                a.tracked = false;
                let a = self.executable(a, false);
                self.timeless(a)
            }
        }
    };
}

/// What the two stages name differently.
pub(crate) trait ArmExecution<A> {
    fn executable(&self, attributes: A, execute: bool) -> A;
    fn other_execution(&self, attributes: A) -> bool;
}

impl ArmExecution<arm64::Stage2Attributes> for Stage2 {
    fn executable(&self, mut a: arm64::Stage2Attributes, to: bool) -> arm64::Stage2Attributes {
        (a.permissions.execute, a.user_execute) = (to, to);
        a
    }
    fn other_execution(&self, a: arm64::Stage2Attributes) -> bool {
        a.user_execute
    }
}

impl ArmExecution<arm64::Stage1Attributes> for Stage1 {
    fn executable(&self, mut a: arm64::Stage1Attributes, to: bool) -> arm64::Stage1Attributes {
        (a.permissions.execute, a.privileged_execute) = (to, to);
        a
    }
    fn other_execution(&self, a: arm64::Stage1Attributes) -> bool {
        a.privileged_execute
    }
}

arm_subject!(Stage2, Stage2Attributes, 15, |permissions, attributes, n| {
    let memory = arm64::Memory { attributes, shareability: 3 };
    let mut attributes = arm64::Stage2Attributes::new(permissions, memory);
    attributes.user_execute ^= n & 128 != 0;
    attributes
});
arm_subject!(Stage1, Stage1Attributes, 7, |permissions, attributes, n| {
    let mut made = arm64::Stage1Attributes::new(permissions);
    made.memory.attributes = attributes;
    made.user = n & 32 != 0;
    made.privileged_execute = n & 128 != 0;
    made
});

/// AArch32's long descriptors, in the terms of AArch64's.
macro_rules! aarch32_subject {
    ($format:ty, $attributes:ident, $memories:expr, $other:ident, $plain:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> arm64::$attributes {
                let plain: fn(Permissions, u8, u8) -> arm64::$attributes = $plain;
                plain(permissions(n), n >> 2 & $memories, n)
            }
            fn memory_numbered(&self, n: u8) -> arm64::Memory {
                let shareability = [0, 2, 3, 3][n as usize & 3];
                arm64::Memory { attributes: n >> 2 & $memories, shareability }
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                permissions(n)
            }
            fn protected(&self, mut a: arm64::$attributes, to: Permissions) -> arm64::$attributes {
                (a.permissions, a.$other) = (to, to.execute);
                a
            }
            fn retyped(&self, mut a: arm64::$attributes, to: arm64::Memory) -> arm64::$attributes {
                a.memory = to;
                a
            }
            fn timeless(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                a.accessed = false;
                a
            }
            fn grants(&self, a: arm64::$attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, a.$other, false]
            }
            fn rest(&self, mut a: arm64::$attributes) -> arm64::$attributes {
                (a.permissions, a.$other) = (Permissions::default(), false);
                self.timeless(a)
            }
        }
    };
}

aarch32_subject!(
    arm32::Stage2,
    Stage2Attributes,
    15,
    user_execute,
    |permissions, attributes, n| {
        let memory = arm64::Memory { attributes, shareability: 3 };
        let mut attributes = arm64::Stage2Attributes::new(permissions, memory);
        attributes.user_execute ^= n & 128 != 0;
        attributes
    }
);
fn long(permissions: Permissions, index: u8, n: u8) -> arm64::Stage1Attributes {
    let mut made = arm64::Stage1Attributes::new(permissions);
    made.memory.attributes = index;
    made.user = n & 32 != 0;
    made.privileged_execute = n & 128 != 0;
    made
}

aarch32_subject!(arm32::Lpae, Stage1Attributes, 7, privileged_execute, long);
aarch32_subject!(short::Upper<arm32::Lpae>, Stage1Attributes, 7, privileged_execute, long);

macro_rules! short_subject {
    ($format:ty) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> short::ShortAttributes {
                let mut attributes = short::ShortAttributes::new(permissions(n));
                attributes.memory = self.memory_numbered(n >> 2);
                attributes.user = n & 64 != 0;
                attributes.not_global = n & 128 != 0;
                attributes
            }
            fn memory_numbered(&self, n: u8) -> short::Tex {
                short::Tex { encoding: n & 31, shareable: n & 32 != 0 }
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                permissions(n)
            }
            fn protected(
                &self,
                mut a: short::ShortAttributes,
                to: Permissions,
            ) -> short::ShortAttributes {
                a.permissions = to;
                a
            }
            fn retyped(
                &self,
                mut a: short::ShortAttributes,
                to: short::Tex,
            ) -> short::ShortAttributes {
                a.memory = to;
                a
            }
            fn timeless(&self, a: short::ShortAttributes) -> short::ShortAttributes {
                a
            }
            fn grants(&self, a: short::ShortAttributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, a.user, false]
            }
            fn rest(&self, mut a: short::ShortAttributes) -> short::ShortAttributes {
                a.permissions = Permissions::default();
                a.user = false;
                a
            }
        }
    };
}

short_subject!(arm32::Short);
short_subject!(short::Upper<arm32::Short>);

macro_rules! riscv_subject {
    ($format:ty, $user_only:expr, $memories:expr) => {
        impl Subject for $format {
            fn attributes_numbered(&self, n: u8) -> riscv::Attributes {
                let mut attributes = riscv::Attributes::new(permissions(n));
                attributes.memory = self.memory_numbered(n >> 2);
                attributes.user = $user_only(self) || n & 32 != 0;
                attributes.dirty = false;
                attributes
            }
            fn memory_numbered(&self, n: u8) -> Pbmt {
                let memories = &[Pbmt::Pma, Pbmt::Nc, Pbmt::Io][..$memories];
                memories[usize::from(n) % memories.len()]
            }
            fn permissions_numbered(&self, n: u8) -> Permissions {
                permissions(n)
            }
            fn protected(&self, mut a: riscv::Attributes, to: Permissions) -> riscv::Attributes {
                a.permissions = to;
                a
            }
            fn retyped(&self, mut a: riscv::Attributes, to: Pbmt) -> riscv::Attributes {
                a.memory = to;
                a
            }
            fn timeless(&self, mut a: riscv::Attributes) -> riscv::Attributes {
                (a.accessed, a.dirty) = (false, false);
                a
            }
            fn grants(&self, a: riscv::Attributes) -> [bool; 5] {
                let Permissions { read, write, execute } = a.permissions;
                [read, write, execute, a.user, false]
            }
            fn rest(&self, mut a: riscv::Attributes) -> riscv::Attributes {
                a.permissions = Permissions::default();
                a.user = false;
                self.timeless(a)
            }
        }
    };
}

riscv_subject!(Sv, |format: &Sv| format.scheme() == Scheme::Sv48, 3);
riscv_subject!(riscv::Sv32, |format: &riscv::Sv32| slat::format::Format::stage(format) == 2, 1);
