//! A program without std, allocator and C library that translates an address through both stages.
//! Exit code 0 if the answer is right. Built and run by `tests/no_std.rs`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use slat::format::ept::{self, Ept};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{Access, EntryLayout, Gpa, Gva, References, Regime, SliceMemory, Spa, Stage, translate};

// The stack is aligned for Rust's calling convention.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {main}", main = sym main);

fn translates() -> bool {
    let mut bytes = [0u8; 8 * 4096];
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let entries: [(u64, u64); 6] = [
        (0x2000, 0x3007),
        (0x3000, 0x4007),
        (0x4000, 0x5007),
        (0x5000, 0x1007),
        (0x6000, 0x7007),
        (0x7000, 0xb7),
    ];
    for (address, entry) in entries {
        if memory.poke(Spa::new(address), EntryLayout::LE64, entry).is_err() {
            return false;
        }
    }
    let long = Long::four(Controls::default(), Processor::default());
    let stage1 = Stage::<_, Gva, Gpa>::new(long, 0x2000);
    let stage2 = Stage::<_, Gpa, Spa>::new(Ept::four(ept::Features::default()), 0x6000);
    let counted = References::default();
    let found = translate(
        &stage1,
        &stage2,
        &mut memory,
        Gva::new(0x123),
        &Access::default(),
        &Regime::default(),
        &counted,
    );
    // Four guest levels over two nested ones (a 1 GiB page): 4 * 2 + 4 + 2.
    found.is_ok_and(|found| found.output() == Spa::new(0x1123)) && counted.count() == 14
}

extern "C" fn main() -> ! {
    exit(if translates() { 0 } else { 1 })
}

fn exit(code: i32) -> ! {
    // SAFETY: exit_group (231) ends the process and touches no memory.
    unsafe { asm!("syscall", in("rax") 231, in("rdi") code, options(noreturn)) }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}

/// The precompiled `core` names it in its unwind tables; with `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What the compiler calls for copies; a kernel brings its own.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's pointers are valid for `count` bytes; `rep movsb` copies just those.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _);
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's pointer is valid for `count` bytes; `rep stosb` writes just those.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8);
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    let mut at = 0;
    while at < count {
        // SAFETY: the caller's pointers are valid for `count` bytes.
        let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}
