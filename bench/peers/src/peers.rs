//! Adapters: one uniform face per peer. `None`/`false` means "the peer has no such operation".
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::arena::arena;

pub const RW: u64 = 0b011;

pub trait Peer {
    const NAME: &'static str;
    /// Correct while hardware sets bits in the tables.
    const LIVE: bool = false;
    fn new() -> Self;
    fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool);
    fn map_one(&mut self, va: u64, pa: u64);
    fn unmap_one(&mut self, va: u64);
    /// Unmaps `pages` in this order by one cursor; false when the peer has no such thing.
    fn unmap_many(&mut self, _pages: &[u64], _va: u64) -> bool {
        false
    }
    fn unmap_range(&mut self, va: u64, len: u64);
    fn protect_ro(&mut self, va: u64, len: u64);
    fn query(&self, va: u64) -> Option<u64>;
    /// Splits the 2 MiB block at `va`; false when the peer cannot.
    fn split_2m(&mut self, _va: u64, _pa: u64) -> bool {
        false
    }
    /// Maps `pages` in this order by one cursor; false when the peer has no such thing.
    fn map_many(&mut self, _pages: &[u64], _va: u64, _pa: u64) -> bool {
        false
    }
}

// ---------------------------------------------------------------- raw bound
/// Hand-written 4-level EPT with no checks at all: the bound to compare with.
pub struct Raw {
    root: usize,
}
impl Raw {
    #[inline(always)]
    fn e(t: usize, i: usize) -> *mut u64 {
        (t + i * 8) as *mut u64
    }
    #[inline(always)]
    fn leaf_table(&mut self, va: u64) -> usize {
        self.table(va, &[39, 30, 21], true)
    }
    /// The table below the entries with these shifts, the last of them made with zeroes or without.
    #[inline(always)]
    fn table(&mut self, va: u64, shifts: &[u32], zeroed: bool) -> usize {
        let mut t = self.root;
        for (n, sh) in shifts.iter().enumerate() {
            let p = Self::e(t, (va >> sh) as usize & 511);
            unsafe {
                if *p == 0 {
                    let last = n + 1 == shifts.len();
                    let new =
                        if last && !zeroed { arena().alloc() } else { arena().alloc_zeroed() };
                    *p = new as u64 | 7;
                }
                t = (*p & !0xfff) as usize;
            }
        }
        t
    }
    /// Table by table, each written once: one that is wholly mapped is not zeroed before.
    #[inline(always)]
    fn fill(&mut self, va: u64, pa: u64, len: u64, shifts: &[u32], leaf: u64) {
        let page = shifts[shifts.len() - 1] - 9;
        let (mut v, mut p, end) = (va, pa, va + len);
        while v < end {
            let i0 = (v >> page) as usize & 511;
            let n = (((end - v) >> page) as usize).min(512 - i0);
            let t = self.table(v, shifts, n < 512);
            let run = unsafe { core::slice::from_raw_parts_mut(Self::e(t, i0), n) };
            for (i, entry) in run.iter_mut().enumerate() {
                *entry = (p + ((i as u64) << page)) | leaf;
            }
            v += (n as u64) << page;
            p += (n as u64) << page;
        }
    }
}
impl Peer for Raw {
    const NAME: &'static str = "raw-bound";
    fn new() -> Self {
        Raw { root: arena().alloc_zeroed() }
    }
    fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
        if huge {
            self.fill(va, pa, len, &[39, 30], 0xb7);
        } else {
            self.fill(va, pa, len, &[39, 30, 21], 0x37);
        }
    }
    fn map_one(&mut self, va: u64, pa: u64) {
        let t = self.leaf_table(va);
        unsafe { *Self::e(t, (va >> 12) as usize & 511) = pa | 0x37 };
    }
    fn map_many(&mut self, pages: &[u64], va: u64, pa: u64) -> bool {
        for &i in pages {
            self.map_one(va + i * 4096, pa + i * 4096);
        }
        true
    }
    fn unmap_one(&mut self, va: u64) {
        let t = self.leaf_table(va);
        unsafe { *Self::e(t, (va >> 12) as usize & 511) = 0 };
    }
    fn unmap_many(&mut self, pages: &[u64], va: u64) -> bool {
        for &i in pages {
            self.unmap_one(va + i * 4096);
        }
        true
    }
    fn unmap_range(&mut self, va: u64, len: u64) {
        let (mut v, end) = (va, va + len);
        while v < end {
            let t = self.leaf_table(v);
            let i0 = (v >> 12) as usize & 511;
            let n = (((end - v) >> 12) as usize).min(512 - i0);
            unsafe { core::ptr::write_bytes(Self::e(t, i0), 0, n) };
            v += (n as u64) << 12;
        }
    }
    fn protect_ro(&mut self, va: u64, len: u64) {
        let (mut v, end) = (va, va + len);
        while v < end {
            let t = self.leaf_table(v);
            let i0 = (v >> 12) as usize & 511;
            let n = (((end - v) >> 12) as usize).min(512 - i0);
            for i in 0..n {
                unsafe { *Self::e(t, i0 + i) &= !2 };
            }
            v += (n as u64) << 12;
        }
    }
    #[inline(never)]
    fn query(&self, va: u64) -> Option<u64> {
        let mut t = self.root;
        for sh in [39u32, 30, 21] {
            let q = unsafe { *Self::e(t, (va >> sh) as usize & 511) };
            if q & 7 == 0 {
                return None;
            }
            if q & 0x80 != 0 {
                return Some((q & 0x000f_ffff_ffff_f000) + (va & ((1 << sh) - 1)));
            }
            t = (q & 0x000f_ffff_ffff_f000) as usize;
        }
        let q = unsafe { *Self::e(t, (va >> 12) as usize & 511) };
        (q & 7 != 0).then_some((q & 0x000f_ffff_ffff_f000) | (va & 0xfff))
    }
    fn split_2m(&mut self, va: u64, pa: u64) -> bool {
        let mut t = self.root;
        for sh in [39, 30] {
            t = (unsafe { *Self::e(t, (va >> sh) as usize & 511) } & !0xfff) as usize;
        }
        let n = arena().alloc();
        for i in 0..512u64 {
            unsafe { *Self::e(n, i as usize) = (pa + (i << 12)) | 0x37 };
        }
        unsafe { *Self::e(t, (va >> 21) as usize & 511) = n as u64 | 7 };
        true
    }
}

/// The same with one locked read-modify-write an entry and no check: the bound of what may be done to
/// tables in use.
pub struct RawAtomic(Raw);
impl RawAtomic {
    #[inline(always)]
    fn a(t: usize, i: usize) -> &'static AtomicU64 {
        unsafe { &*(Raw::e(t, i) as *const AtomicU64) }
    }
}
impl Peer for RawAtomic {
    const NAME: &'static str = "raw-bound-atomic";
    const LIVE: bool = true;
    fn new() -> Self {
        RawAtomic(Raw::new())
    }
    /// Where nothing was, nobody can be: a plain store, and one exchange to link each table.
    fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
        self.0.map_range(va, pa, len, huge);
    }
    fn map_one(&mut self, va: u64, pa: u64) {
        let t = self.0.leaf_table(va);
        let _ =
            Self::a(t, (va >> 12) as usize & 511).compare_exchange(0, pa | 0x37, Relaxed, Relaxed);
    }
    fn map_many(&mut self, pages: &[u64], va: u64, pa: u64) -> bool {
        for &i in pages {
            self.map_one(va + i * 4096, pa + i * 4096);
        }
        true
    }
    fn unmap_one(&mut self, va: u64) {
        let t = self.0.leaf_table(va);
        Self::a(t, (va >> 12) as usize & 511).swap(0, Relaxed);
    }
    fn unmap_many(&mut self, pages: &[u64], va: u64) -> bool {
        for &i in pages {
            self.unmap_one(va + i * 4096);
        }
        true
    }
    fn unmap_range(&mut self, va: u64, len: u64) {
        for v in (va..va + len).step_by(2 << 20) {
            let t = self.0.leaf_table(v);
            for i in 0..512 {
                Self::a(t, i).swap(0, Relaxed);
            }
        }
    }
    fn protect_ro(&mut self, va: u64, len: u64) {
        for v in (va..va + len).step_by(2 << 20) {
            let t = self.0.leaf_table(v);
            for i in 0..512 {
                Self::a(t, i).fetch_and(!2, Relaxed);
            }
        }
    }
    #[inline(never)]
    fn query(&self, va: u64) -> Option<u64> {
        self.0.query(va)
    }
    fn split_2m(&mut self, va: u64, pa: u64) -> bool {
        let mut t = self.0.root;
        for sh in [39, 30] {
            t = (unsafe { *Raw::e(t, (va >> sh) as usize & 511) } & !0xfff) as usize;
        }
        let n = arena().alloc();
        for i in 0..512u64 {
            unsafe { *Raw::e(n, i as usize) = (pa + (i << 12)) | 0x37 };
        }
        let a = Self::a(t, (va >> 21) as usize & 511);
        let was = a.load(Relaxed);
        a.compare_exchange(was, n as u64 | 7, Relaxed, Relaxed).is_ok()
    }
}

// ------------------------------------------------------------ aarch64-paging
pub mod a64 {
    use super::*;
    use aarch64_paging::Mapping;
    use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes as A, UpdatableDescriptor};
    use aarch64_paging::paging::{Constraints, MemoryRegion, PageTable, Stage2, Translation};
    use core::ptr::NonNull;
    pub struct T;
    impl Translation<A> for T {
        fn allocate_table(&mut self) -> (NonNull<PageTable<A>>, PhysicalAddress) {
            let p = arena().alloc_zeroed();
            (NonNull::new(p as *mut _).unwrap(), PhysicalAddress(p))
        }
        unsafe fn deallocate_table(&mut self, t: NonNull<PageTable<A>>) {
            arena().free(t.as_ptr() as usize);
        }
        fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<A>> {
            NonNull::new(pa.0 as *mut _).unwrap()
        }
    }
    fn attrs() -> A {
        A::VALID
            | A::ACCESS_FLAG
            | A::S2AP_ACCESS_RW
            | A::SH_INNER
            | A::MEMATTR_NORMAL_INNER_WB
            | A::MEMATTR_NORMAL_OUTER_WB
    }
    pub struct A64<const LIVE: bool>(Mapping<T, Stage2>);
    impl<const LIVE: bool> Drop for A64<LIVE> {
        fn drop(&mut self) {
            if LIVE {
                self.0.mark_inactive();
            }
        }
    }
    fn mr(va: u64, len: u64) -> MemoryRegion {
        MemoryRegion::new(va as usize, (va + len) as usize)
    }
    impl<const LIVE: bool> Peer for A64<LIVE> {
        const NAME: &'static str = if LIVE { "aarch64-paging(live)" } else { "aarch64-paging" };
        const LIVE: bool = LIVE;
        fn new() -> Self {
            let m = Mapping::new(T, 0, Stage2);
            if LIVE {
                m.mark_active();
            }
            A64(m)
        }
        fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
            let c = if huge { Constraints::empty() } else { Constraints::NO_BLOCK_MAPPINGS };
            self.0.map_range(&mr(va, len), PhysicalAddress(pa as usize), attrs(), c).unwrap();
        }
        fn map_one(&mut self, va: u64, pa: u64) {
            self.0
                .map_range(
                    &mr(va, 4096),
                    PhysicalAddress(pa as usize),
                    attrs(),
                    Constraints::empty(),
                )
                .unwrap();
        }
        fn unmap_one(&mut self, va: u64) {
            self.0
                .map_range(&mr(va, 4096), PhysicalAddress(0), A::empty(), Constraints::empty())
                .unwrap();
        }
        fn unmap_range(&mut self, va: u64, len: u64) {
            self.0
                .map_range(&mr(va, len), PhysicalAddress(0), A::empty(), Constraints::empty())
                .unwrap();
        }
        fn protect_ro(&mut self, va: u64, len: u64) {
            self.0
                .modify_range(&mr(va, len), &|_: &MemoryRegion, d: &mut UpdatableDescriptor<A>| {
                    d.modify_flags(A::empty(), A::S2AP_ACCESS_WO)
                })
                .unwrap();
        }
        #[inline(never)]
        fn query(&self, va: u64) -> Option<u64> {
            let mut out = None;
            self.0
                .walk_range(&mr(va & !0xfff, 4096), &mut |_, d, level| {
                    if d.is_valid() {
                        let g = 4096u64 << (9 * (3 - level));
                        out = Some(d.output_address().0 as u64 + (va & (g - 1)));
                    }
                    Ok(())
                })
                .ok()?;
            out
        }
        fn split_2m(&mut self, va: u64, _pa: u64) -> bool {
            if LIVE {
                return false;
            }
            self.0
                .modify_range(&mr(va, 4096), &|_: &MemoryRegion, _: &mut UpdatableDescriptor<A>| {
                    Ok(())
                })
                .is_ok()
        }
    }
}

// ------------------------------------------------------ page_table_multiarch
pub mod ptm {
    use super::*;
    use memory_addr::{PhysAddr, VirtAddr};
    use page_table_multiarch::{
        MappingFlags as F, PageSize, PageTable64, PagingHandler, PagingMetaData,
    };
    pub struct Meta;
    impl PagingMetaData for Meta {
        const LEVELS: usize = 4;
        const PA_MAX_BITS: usize = 52;
        const VA_MAX_BITS: usize = 48;
        type VirtAddr = VirtAddr;
        fn flush_tlb(_: Option<VirtAddr>) {}
    }
    pub struct H;
    impl PagingHandler for H {
        fn alloc_frame() -> Option<PhysAddr> {
            Some(PhysAddr::from(arena().alloc()))
        }
        fn alloc_frames(n: usize, a: usize) -> Option<PhysAddr> {
            Some(PhysAddr::from(arena().alloc_n(n, a)))
        }
        fn dealloc_frame(p: PhysAddr) {
            arena().free(p.as_usize())
        }
        fn dealloc_frames(p: PhysAddr, n: usize) {
            for i in 0..n {
                arena().free(p.as_usize() + i * 4096)
            }
        }
        fn phys_to_virt(p: PhysAddr) -> VirtAddr {
            VirtAddr::from(p.as_usize())
        }
    }
    pub type Pt = PageTable64<Meta, page_table_entry::x86_64::X64PTE, H>;
    pub struct Ptm(pub Pt);
    const RW: F = F::READ.union(F::WRITE);
    impl Peer for Ptm {
        const NAME: &'static str = "page_table_multiarch";
        fn new() -> Self {
            Ptm(Pt::try_new().unwrap())
        }
        fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
            let off = pa.wrapping_sub(va) as usize;
            self.0
                .cursor()
                .map_region(
                    VirtAddr::from(va as usize),
                    |v| PhysAddr::from(v.as_usize().wrapping_add(off)),
                    len as usize,
                    RW,
                    huge,
                )
                .unwrap();
        }
        fn map_one(&mut self, va: u64, pa: u64) {
            self.0
                .cursor()
                .map(VirtAddr::from(va as usize), PhysAddr::from(pa as usize), PageSize::Size4K, RW)
                .unwrap();
        }
        fn unmap_one(&mut self, va: u64) {
            self.0.cursor().unmap(VirtAddr::from(va as usize)).unwrap();
        }
        fn unmap_range(&mut self, va: u64, len: u64) {
            self.0.cursor().unmap_region(VirtAddr::from(va as usize), len as usize).unwrap();
        }
        fn protect_ro(&mut self, va: u64, len: u64) {
            self.0
                .cursor()
                .protect_region(VirtAddr::from(va as usize), len as usize, F::READ)
                .unwrap();
        }
        #[inline(never)]
        fn query(&self, va: u64) -> Option<u64> {
            self.0.query(VirtAddr::from(va as usize)).ok().map(|(p, _, _)| p.as_usize() as u64)
        }
    }
}

// -------------------------------------------------------- page-table-generic
pub mod ptg {
    use super::*;
    use page_table_generic::*;
    #[derive(Clone, Copy, Debug)]
    pub struct Ept(u64);
    impl PageTableEntry for Ept {
        type PteConfig = u64;
        fn new_page(p: PhysAddr, c: u64, huge: bool) -> Self {
            Ept(p.as_usize() as u64 | c | 0x30 | if huge { 0x80 } else { 0 })
        }
        fn new_table(p: PhysAddr) -> Self {
            Ept(p.as_usize() as u64 | 7)
        }
        fn paddr(&self, _: bool) -> PhysAddr {
            PhysAddr::from_usize((self.0 & 0x000f_ffff_ffff_f000) as usize)
        }
        fn config(&self, _: bool) -> u64 {
            self.0 & 7
        }
        fn present(&self) -> bool {
            self.0 & 7 != 0
        }
        fn huge(&self, d: bool) -> bool {
            d && self.0 & 0x80 != 0
        }
        fn unused(&self) -> bool {
            self.0 == 0
        }
        fn clear(&mut self) {
            self.0 = 0
        }
    }
    #[derive(Clone, Copy, Debug)]
    pub struct Meta;
    impl TableMeta for Meta {
        type P = Ept;
        const PAGE_SIZE: usize = 4096;
        const LEVEL_BITS: &[usize] = &[9, 9, 9, 9];
        const MAX_BLOCK_LEVEL: usize = 3;
        fn flush(_: Option<VirtAddr>) {}
    }
    #[derive(Clone, Copy)]
    pub struct Fa;
    impl FrameAllocator for Fa {
        fn alloc_frame(&self) -> Option<PhysAddr> {
            Some(PhysAddr::from_usize(arena().alloc()))
        }
        fn dealloc_frame(&self, f: PhysAddr) {
            arena().free(f.as_usize())
        }
        fn phys_to_virt(&self, p: PhysAddr) -> *mut u8 {
            p.as_usize() as *mut u8
        }
    }
    pub struct Ptg(pub PageTable<Meta, Fa>);
    fn v(a: u64) -> VirtAddr {
        VirtAddr::from_usize(a as usize)
    }
    fn p(a: u64) -> PhysAddr {
        PhysAddr::from_usize(a as usize)
    }
    impl Peer for Ptg {
        const NAME: &'static str = "page-table-generic";
        fn new() -> Self {
            Ptg(PageTable::new(Fa).unwrap())
        }
        fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
            self.0
                .map(&MapConfig {
                    vaddr: v(va),
                    paddr: p(pa),
                    size: len as usize,
                    pte: RW,
                    allow_huge: huge,
                    flush: true,
                })
                .unwrap();
        }
        fn map_one(&mut self, va: u64, pa: u64) {
            self.0.map_page(v(va), p(pa), 4096, RW).unwrap();
        }
        fn unmap_one(&mut self, va: u64) {
            self.0.unmap_page(v(va)).unwrap();
        }
        fn unmap_range(&mut self, va: u64, len: u64) {
            self.0.unmap(v(va), len as usize).unwrap();
        }
        fn protect_ro(&mut self, va: u64, len: u64) {
            self.0.protect_region(v(va), len as usize, 1).unwrap();
        }
        #[inline(never)]
        fn query(&self, va: u64) -> Option<u64> {
            self.0.query(v(va)).ok().map(|(p, _, _)| p.as_usize() as u64)
        }
        fn split_2m(&mut self, va: u64, _pa: u64) -> bool {
            self.0.split_huge_page(v(va)).is_ok()
        }
    }
}

// ------------------------------------------------------- x86_64 OffsetPageTable
pub mod x64 {
    use super::*;
    use x86_64::structures::paging::mapper::{Mapper, OffsetPageTable, Translate};
    use x86_64::structures::paging::{
        FrameAllocator, Page, PageTable, PageTableFlags as F, PhysFrame, Size2MiB, Size4KiB,
    };
    use x86_64::{PhysAddr, VirtAddr};
    struct Fa;
    unsafe impl FrameAllocator<Size4KiB> for Fa {
        fn allocate_frame(&mut self) -> Option<PhysFrame> {
            Some(PhysFrame::containing_address(PhysAddr::new(arena().alloc() as u64)))
        }
    }
    pub struct X64(OffsetPageTable<'static>);
    fn f() -> F {
        F::PRESENT | F::WRITABLE | F::USER_ACCESSIBLE
    }
    fn pg(va: u64) -> Page<Size4KiB> {
        Page::containing_address(VirtAddr::new(va))
    }
    impl Peer for X64 {
        const NAME: &'static str = "x86_64::OffsetPageTable";
        fn new() -> Self {
            let r = arena().alloc_zeroed();
            X64(unsafe { OffsetPageTable::new(&mut *(r as *mut PageTable), VirtAddr::new(0)) })
        }
        fn map_range(&mut self, va: u64, pa: u64, len: u64, huge: bool) {
            let step = if huge { 2 << 20 } else { 4096 };
            let mut o = 0;
            while o < len {
                unsafe {
                    if huge {
                        self.0
                            .map_to(
                                Page::<Size2MiB>::containing_address(VirtAddr::new(va + o)),
                                PhysFrame::containing_address(PhysAddr::new(pa + o)),
                                f(),
                                &mut Fa,
                            )
                            .unwrap()
                            .ignore();
                    } else {
                        self.0
                            .map_to(
                                pg(va + o),
                                PhysFrame::containing_address(PhysAddr::new(pa + o)),
                                f(),
                                &mut Fa,
                            )
                            .unwrap()
                            .ignore();
                    }
                }
                o += step;
            }
        }
        fn map_one(&mut self, va: u64, pa: u64) {
            unsafe {
                self.0
                    .map_to(pg(va), PhysFrame::containing_address(PhysAddr::new(pa)), f(), &mut Fa)
                    .unwrap()
                    .ignore()
            };
        }
        fn unmap_one(&mut self, va: u64) {
            self.0.unmap(pg(va)).unwrap().1.ignore();
        }
        fn unmap_range(&mut self, va: u64, len: u64) {
            for o in (0..len).step_by(4096) {
                self.0.unmap(pg(va + o)).unwrap().1.ignore();
            }
        }
        fn protect_ro(&mut self, va: u64, len: u64) {
            for o in (0..len).step_by(4096) {
                unsafe {
                    self.0
                        .update_flags(pg(va + o), F::PRESENT | F::USER_ACCESSIBLE)
                        .unwrap()
                        .ignore()
                };
            }
        }
        #[inline(never)]
        fn query(&self, va: u64) -> Option<u64> {
            self.0.translate_addr(VirtAddr::new(va)).map(|p| p.as_u64())
        }
    }
}
