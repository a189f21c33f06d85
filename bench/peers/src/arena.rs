//! One pre-faulted bump arena with a free list, shared by every peer so that
//! allocator cost is the same for all. Single-threaded by construction.
use std::cell::UnsafeCell;

pub const PAGE: usize = 4096;
pub struct Arena {
    base: usize,
    next: usize,
    end: usize,
    free: Vec<usize>,
    pub allocs: usize,
    pub frees: usize,
}
struct Slot(UnsafeCell<Option<Arena>>);
unsafe impl Sync for Slot {}
static ARENA: Slot = Slot(UnsafeCell::new(None));

unsafe extern "C" {
    fn mmap(a: *mut u8, l: usize, p: i32, f: i32, fd: i32, o: i64) -> *mut u8;
    fn madvise(a: *mut u8, l: usize, adv: i32) -> i32;
}

pub fn init(bytes: usize) {
    unsafe {
        let slot = &mut *ARENA.0.get();
        if slot.is_some() {
            return;
        }
        let len = bytes + (2 << 20);
        let p = mmap(core::ptr::null_mut(), len, 3, 0x22, -1, 0);
        assert!(p as isize != -1);
        let base = (p as usize + (2 << 20) - 1) & !((2 << 20) - 1);
        if std::env::var_os("NOTHP").is_none() {
            madvise(base as *mut u8, bytes, 14); // MADV_HUGEPAGE, like a kernel direct map
        }
        let mut a = base;
        while a < base + bytes {
            (a as *mut u8).write_volatile(1);
            a += PAGE;
        }
        *slot = Some(Arena {
            base,
            next: base,
            end: base + bytes,
            free: Vec::with_capacity(bytes / PAGE),
            allocs: 0,
            frees: 0,
        });
    }
}
#[inline]
pub fn arena() -> &'static mut Arena {
    unsafe { (*ARENA.0.get()).as_mut().unwrap_unchecked() }
}
impl Arena {
    pub fn reset(&mut self) {
        self.next = self.base;
        self.free.clear();
        self.allocs = 0;
        self.frees = 0;
    }
    #[inline]
    pub fn alloc(&mut self) -> usize {
        self.allocs += 1;
        if let Some(p) = self.free.pop() {
            return p;
        }
        let p = self.next;
        assert!(p < self.end, "arena exhausted");
        self.next += PAGE;
        p
    }
    #[inline]
    pub fn alloc_zeroed(&mut self) -> usize {
        let p = self.alloc();
        unsafe { core::ptr::write_bytes(p as *mut u8, 0, PAGE) };
        p
    }
    pub fn alloc_n(&mut self, n: usize, align: usize) -> usize {
        let p = (self.next + align - 1) & !(align - 1);
        assert!(p + n * PAGE <= self.end);
        self.next = p + n * PAGE;
        self.allocs += n;
        p
    }
    #[inline]
    pub fn free(&mut self, p: usize) {
        self.frees += 1;
        self.free.push(p);
    }
}
