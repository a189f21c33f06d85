//! What is asked of a translation: the kind of access, on whose behalf, and why.

/// What an access does to the byte it reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Kind {
    /// A data load.
    #[default]
    Read,
    /// A data store, or a read-modify-write (of AArch64 with [`Flavor::Atomic`]).
    Write,
    /// An instruction fetch.
    Execute,
}

/// The privilege an access is made with.
///
/// x86: user is CPL 3, supervisor is CPL 0 to 2 and implicit system accesses. Arm: EL0, or the
/// regime's higher level. RISC-V: U/VU or S/VS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Privilege {
    /// The kernel's side.
    #[default]
    Supervisor,
    /// The application's side.
    User,
}

/// Why an access is made, as the stage below sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Purpose {
    /// The access that software asked for.
    #[default]
    Final,
    /// Stage 1 reads a table entry of this level.
    Table {
        /// Level of the entry that is read.
        level: u8,
    },
    /// Stage 1 sets accessed or dirty bits in an entry of this level.
    Update {
        /// Level of the entry that is written.
        level: u8,
    },
    /// The four PDPTEs are loaded into registers by MOV to CR3 (Intel SDM 3A 5.4.1).
    PdpteLoad,
}

impl Purpose {
    /// Whether the access is to a table of the stage above, rather than the final one.
    #[inline]
    pub const fn is_table(self) -> bool {
        !matches!(self, Purpose::Final)
    }
}

/// Accesses that a format treats apart from plain ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Flavor {
    /// Nothing special.
    #[default]
    Plain,
    /// A shadow-stack load or store (Intel SDM 1 chapter 17, RISC-V Zicfiss).
    ShadowStack,
    /// An implicit supervisor access to a system structure, to which `AC` gives no licence
    /// (Intel SDM 3A 5.6).
    Implicit,
    /// A RISC-V `HLVX` load: a read that asks for execute permission instead of read.
    Hlvx,
    /// An Arm unprivileged load or store (`LDTR`): privileged code, EL0's permissions.
    Unprivileged,
    /// An AArch64 instruction that reads and writes (`LDADD`, `CAS`, `SWP`), as [`Kind::Write`]: its
    /// stage 2 asks for both rights, and a fault that a read would have had as well is reported as a
    /// read's (`ESR_ELx.WnR`, Arm ARM D24.2.45). Under other formats it is a plain write.
    Atomic,
}

/// What stage 1 says of the page through which the final access goes. The second stage needs it
/// for mode-based execute control, advanced violation information and guest-paging verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Stage1Page {
    /// The page is a user page (true where stage 1 is off: Intel SDM 3C 30.2.1, table 30-7).
    pub user: bool,
    /// Stage 1 permits writes.
    pub writable: bool,
    /// Stage 1 permits execution.
    pub executable: bool,
    /// The page is a shadow-stack page of stage 1.
    pub shadow_stack: bool,
    /// AND over the second-stage leaf entries through which stage 1's tables were read (all ones
    /// where none were): EPT's guest-paging verification asks for bit 58 of each.
    pub tables_via: u64,
}

impl Stage1Page {
    /// The page that an access has where stage 1 is off.
    pub const FLAT: Stage1Page = Stage1Page {
        user: true,
        writable: true,
        executable: true,
        shadow_stack: false,
        tables_via: u64::MAX,
    };
}

/// One access descriptor: what a walk, and the memory under it, is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Access {
    /// Load, store or fetch.
    pub kind: Kind,
    /// The final access, or one of the stage above to its tables.
    pub purpose: Purpose,
    /// The privilege that the access is made with.
    pub privilege: Privilege,
    /// Accesses with rules of their own.
    pub flavor: Flavor,
    /// What stage 1 found, where this is the final access of a two-stage walk.
    pub page: Option<Stage1Page>,
    /// The address that software used, where this access was made on its behalf by a stage above.
    pub origin: Option<u64>,
}

impl Access {
    /// A plain final access of this kind and privilege.
    #[inline]
    pub const fn new(kind: Kind, privilege: Privilege) -> Self {
        Access {
            kind,
            purpose: Purpose::Final,
            privilege,
            flavor: Flavor::Plain,
            page: None,
            origin: None,
        }
    }

    /// The same access, with this flavor.
    #[inline]
    pub const fn with_flavor(self, flavor: Flavor) -> Self {
        Access { flavor, ..self }
    }

    /// The same access asked as another kind.
    #[inline]
    pub const fn as_kind(self, kind: Kind) -> Self {
        Access { kind, ..self }
    }

    /// A copy made field by field. A plain copy is one of bytes, for which the compiler keeps both in
    /// memory; a walk wants the fields in registers.
    #[inline(always)]
    #[must_use]
    pub const fn by_fields(&self) -> Self {
        let Access { kind, purpose, privilege, flavor, page, origin } = *self;
        let page = match page {
            Some(Stage1Page { user, writable, executable, shadow_stack, tables_via }) => {
                Some(Stage1Page { user, writable, executable, shadow_stack, tables_via })
            }
            None => None,
        };
        Access { kind, purpose, privilege, flavor, page, origin }
    }

    /// The read of a table entry of `level` that a walk makes on behalf of this access.
    /// `input` is the address being walked.
    #[inline]
    pub(crate) const fn table_read(&self, level: u8, input: u64) -> Self {
        Access {
            kind: Kind::Read,
            purpose: Purpose::Table { level },
            privilege: self.privilege,
            flavor: Flavor::Plain,
            page: None,
            origin: self.origin_or(input),
        }
    }

    /// The write of accessed and dirty bits that a walk makes on behalf of this access.
    #[inline]
    pub(crate) const fn table_update(&self, level: u8, input: u64) -> Self {
        Access {
            kind: Kind::Write,
            purpose: Purpose::Update { level },
            privilege: self.privilege,
            flavor: Flavor::Plain,
            page: None,
            origin: self.origin_or(input),
        }
    }

    #[inline]
    const fn origin_or(&self, input: u64) -> Option<u64> {
        match self.origin {
            Some(origin) => Some(origin),
            None => Some(input),
        }
    }
}
