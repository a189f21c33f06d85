//! A format that wraps another, and says most as that does.

/// The methods of [`Format`](crate::format::Format) but for where a walk begins.
macro_rules! format {
    ($inner:ty) => {
        const UNROLLED: bool = <$inner>::UNROLLED;

        fn name(&self) -> &'static str {
            self.0.name()
        }

        fn stage(&self) -> u8 {
            self.0.stage()
        }

        fn layout(&self) -> EntryLayout {
            self.0.layout()
        }

        fn shift(&self, level: u8) -> u32 {
            self.0.shift(level)
        }

        fn index_bits(&self, level: u8) -> u32 {
            self.0.index_bits(level)
        }

        fn decode(&self, entry: u64, level: u8) -> Decoded {
            self.0.decode(entry, level)
        }

        fn plain_table(&self, entry: u64, level: u8) -> Option<u64> {
            self.0.plain_table(entry, level)
        }

        fn plain_leaf(&self, entry: u64, level: u8) -> Option<(u64, u8)> {
            self.0.plain_leaf(entry, level)
        }

        fn join(&self, path: &mut Path, entry: u64, level: u8) {
            self.0.join(path, entry, level);
        }

        fn check(&self, found: &Found, access: &Access, regime: &Regime) -> Result<(), Cause> {
            self.0.check(found, access, regime)
        }

        fn touched(&self, entry: u64, level: u8, is_leaf: bool, access: &Access) -> u64 {
            self.0.touched(entry, level, is_leaf, access)
        }

        fn settled(&self, leaf: u64, level: u8, dirty: bool) -> u64 {
            self.0.settled(leaf, level, dirty)
        }

        fn span(&self, leaf: u64, level: u8) -> u32 {
            self.0.span(leaf, level)
        }

        fn type_bits(&self, found: &Found) -> TypeBits {
            self.0.type_bits(found)
        }

        fn type_of(&self, bits: TypeBits, kind: Kind, regime: &Regime) -> StageType {
            self.0.type_of(bits, kind, regime)
        }

        fn arch_level(&self, level: u8) -> i8 {
            self.0.arch_level(level)
        }

        fn describe(&self, entry: u64, level: u8, f: &mut dyn fmt::Write) -> fmt::Result {
            self.0.describe(entry, level, f)
        }

        fn guards(&self, found: &Found) -> bool {
            self.0.guards(found)
        }

        fn page(&self, found: &Found, regime: &Regime) -> Stage1Page {
            self.0.page(found, regime)
        }
    };
}

/// The methods of [`Encode`](super::Encode) but for where tables and addresses lie.
macro_rules! encode {
    ($inner:ty) => {
        type Attributes = <$inner as Encode>::Attributes;
        type Memory = <$inner as Encode>::Memory;

        const BREAKS: bool = <$inner as Encode>::BREAKS;

        fn leaf(&self, attributes: &Self::Attributes, level: u8) -> Result<u64, Refused> {
            self.0.leaf(attributes, level)
        }

        fn attributes(&self, entry: u64, level: u8) -> Self::Attributes {
            Encode::attributes(&self.0, entry, level)
        }

        fn permissions_of(&self, entry: u64, level: u8) -> Permissions {
            self.0.permissions_of(entry, level)
        }

        fn table(&self, next: u64, level: u8) -> u64 {
            self.0.table(next, level)
        }

        fn frozen(&self) -> u64 {
            self.0.frozen()
        }

        fn promote(&self, entry: u64, level: u8) -> u64 {
            self.0.promote(entry, level)
        }

        fn permit(&self, permissions: Permissions, level: u8) -> Result<Change, Refused> {
            self.0.permit(permissions, level)
        }

        fn retype(&self, memory: Self::Memory, level: u8) -> Result<Change, Refused> {
            self.0.retype(memory, level)
        }

        fn hardware_dirty(&self) -> bool {
            self.0.hardware_dirty()
        }

        fn is_accessed(&self, entry: u64) -> bool {
            self.0.is_accessed(entry)
        }

        fn is_dirty(&self, entry: u64) -> bool {
            self.0.is_dirty(entry)
        }

        fn age(&self) -> Change {
            self.0.age()
        }

        fn clean(&self) -> Change {
            self.0.clean()
        }

        fn soil(&self) -> Change {
            self.0.soil()
        }

        fn inherit(&self, entry: u64, from: u64) -> u64 {
            self.0.inherit(entry, from)
        }

        fn history(&self, entry: u64) -> u64 {
            self.0.history(entry)
        }

        fn group_shift(&self, level: u8) -> Option<u32> {
            self.0.group_shift(level)
        }

        fn group(&self, entry: u64, level: u8) -> Option<u32> {
            self.0.group(entry, level)
        }

        fn grouped(&self, leaf: u64, level: u8) -> u64 {
            self.0.grouped(leaf, level)
        }

        fn ungrouped(&self, entry: u64, index: u64, level: u8) -> u64 {
            self.0.ungrouped(entry, index, level)
        }

        fn effect(&self, lost: u64, gained: u64, level: u8) -> Effect {
            self.0.effect(lost, gained, level)
        }

        fn caches_invalid(&self) -> bool {
            self.0.caches_invalid()
        }

        fn root_in_registers(&self) -> bool {
            self.0.root_in_registers()
        }

        fn is_global(&self, leaf: u64, level: u8, above: u64) -> bool {
            self.0.is_global(leaf, level, above)
        }

        fn breaks(&self, old: u64, new: u64, level: u8) -> bool {
            self.0.breaks(old, new, level)
        }
    };
}

pub(super) use {encode, format};
