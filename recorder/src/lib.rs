//! QEMU plugin that records a real guest: every load, store and block fetch with its physical
//! address, every change of a translation table, and what else decides how addresses are translated.
//!
//! `slat record` builds or finds this library and runs QEMU with it; by hand it is
//!
//! ```text
//! qemu-system-x86_64 -accel tcg,thread=single -icount shift=2,sleep=off -seed 1 \
//!     -object memory-backend-file,id=ram,size=512M,mem-path=/dev/shm/guest,share=on \
//!     -machine pc,memory-backend=ram ... \
//!     -plugin libslat_recorder.so,out=run.slat,ram=/dev/shm/guest
//! ```
//!
//! Until the guest executes the marker that begins a recording (x86-64: CPUID with EAX 0x51a70001;
//! AArch64: HINT #0x7a) only that is looked for, and the guest boots at its usual speed. Then all
//! translations are dropped and made anew, instrumented; the next marker (0x51a70002; #0x7b), the
//! limit `max-accesses` or QEMU's end closes the recording.
//!
//! All vCPUs must run on one thread (`thread=single`), which also gives their accesses one order.
#![cfg(target_os = "linux")]

mod aarch64;
mod ffi;
mod guest;
mod identity;
mod notes;
mod output;
mod parameters;
mod recorder;
mod shapes;
mod tables;
mod x86;

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::thread::ThreadId;

use slat_trace::Arch;

use crate::parameters::{Parameters, Stage};
use crate::recorder::{Block, Recorder, Special, Then};

/// The version of the interface that this plugin is written for; QEMU reads it.
// SAFETY: the name is the interface's, and no other symbol of this library has it.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 4;

struct Global(UnsafeCell<Option<(ffi::PluginId, Recorder)>>);

// SAFETY: it is written once, before the first vCPU runs, and then used only by callbacks. They all
// run on the one thread of the vCPUs (`on_translate` makes sure of it) or, at exit, after that has
// stopped.
unsafe impl Sync for Global {}

static GLOBAL: Global = Global(UnsafeCell::new(None));
static THREAD: OnceLock<ThreadId> = OnceLock::new();

/// Runs `body` with the recorder, and resets QEMU's translations if it says so.
#[inline(always)]
fn with(body: impl FnOnce(&mut Recorder) -> Then) {
    // SAFETY: see `Global`; callbacks do not nest, so that this is the only reference.
    let Some((id, recorder)) = (unsafe { &mut *GLOBAL.0.get() }) else { return };
    if body(recorder) == Then::Reset {
        // SAFETY: the identity is the one that QEMU gave.
        unsafe { ffi::qemu_plugin_reset(*id, on_reset) };
    }
}

extern "C" fn on_reset(id: ffi::PluginId) {
    // SAFETY: the identity is the one that QEMU gave; the callbacks live as long as the library.
    unsafe {
        ffi::qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
        ffi::qemu_plugin_register_atexit_cb(id, on_exit, std::ptr::null_mut());
    }
}

extern "C" fn on_exit(_: ffi::PluginId, _: *mut c_void) {
    with(|recorder| {
        recorder.finish("exit");
        Then::GoOn
    });
}

extern "C" fn on_access(_: c_uint, info: u32, va: u64, _: *mut c_void) {
    with(|recorder| {
        recorder.accessed(info, va);
        Then::GoOn
    });
}

extern "C" fn on_access_address(_: c_uint, info: u32, va: u64, _: *mut c_void) {
    Recorder::address_only(info, va);
}

extern "C" fn on_access_nothing(_: c_uint, _: u32, _: u64, _: *mut c_void) {}

extern "C" fn on_block_nothing(_: c_uint, _: *mut c_void) {}

extern "C" fn on_block(_: c_uint, data: *mut c_void) {
    // SAFETY: `data` is the block that `on_translate` leaked for this callback.
    let block = unsafe { &*data.cast::<Block>() };
    with(|recorder| recorder.executes(block));
}

extern "C" fn on_special(_: c_uint, data: *mut c_void) {
    // SAFETY: `data` is what `on_translate` leaked for this callback.
    let special = unsafe { &*data.cast::<Special>() };
    with(|recorder| recorder.special(special));
}

extern "C" fn on_translate(_: ffi::PluginId, tb: *mut c_void) {
    let this = std::thread::current().id();
    if *THREAD.get_or_init(|| this) != this {
        eprintln!(
            "slat-recorder: QEMU runs vCPUs on several threads; use -accel tcg,thread=single"
        );
        std::process::exit(2);
    }
    with(|recorder| {
        recorder.translating();
        // SAFETY: `tb` is the block that QEMU is translating, for the time of this callback.
        unsafe { translate(recorder, tb) };
        Then::GoOn
    });
}

/// Instruments a block.
///
/// # Safety
///
/// `tb` must be the block that QEMU is translating.
unsafe fn translate(recorder: &mut Recorder, tb: *mut c_void) {
    let running = recorder.is_running();
    let stage = recorder.parameters.stage;
    let on_access: ffi::MemoryCallback = match stage {
        Stage::Bare | Stage::Callback => on_access_nothing,
        Stage::Address => on_access_address,
        Stage::Note | Stage::Full => on_access,
    };
    let mut bytes = 0;
    // SAFETY: the block and its instructions are QEMU's and live for the time of the callback; the
    // buffer is as long as its length says. What is leaked lives as long as the translation may.
    unsafe {
        let count = ffi::qemu_plugin_tb_n_insns(tb);
        for index in 0..count {
            let insn = ffi::qemu_plugin_tb_get_insn(tb, index);
            let mut data = [0; 16];
            let len = ffi::qemu_plugin_insn_data(insn, data.as_mut_ptr(), data.len());
            let data = &data[..len.min(16)];
            bytes += ffi::qemu_plugin_insn_size(insn);
            let special = match recorder.arch {
                Arch::X86_64 => x86::special(data, ffi::qemu_plugin_insn_vaddr(insn))
                    .map(|(special, instruction)| Special::X86(special, instruction)),
                Arch::Aarch64 => data.first_chunk().and_then(|word| {
                    let word = u32::from_le_bytes(*word);
                    aarch64::special(word).map(|special| Special::Aarch64(special, word))
                }),
            };
            if let Some(special) = special.filter(|special| running || special.always()) {
                let data = Box::into_raw(Box::new(special)).cast();
                let flags = ffi::READ_REGISTERS;
                ffi::qemu_plugin_register_vcpu_insn_exec_cb(insn, on_special, flags, data);
            }
            if running {
                ffi::qemu_plugin_register_vcpu_mem_cb(
                    insn,
                    on_access,
                    ffi::NO_REGISTERS,
                    ffi::LOADS_AND_STORES,
                    std::ptr::null_mut(),
                );
            }
        }
        if running {
            let va = ffi::qemu_plugin_tb_vaddr(tb);
            let host = ffi::qemu_plugin_insn_haddr(ffi::qemu_plugin_tb_get_insn(tb, 0));
            let (bytes, count) = (bytes.min(0xffff) as u16, count.min(0xffff) as u16);
            if stage < Stage::Note {
                let nothing = std::ptr::null_mut();
                let flags = ffi::NO_REGISTERS;
                ffi::qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block_nothing, flags, nothing);
            } else if let Some(block) = recorder.block(va, host, bytes, count) {
                let data = Box::into_raw(Box::new(block)).cast();
                ffi::qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, ffi::READ_REGISTERS, data);
            }
        }
    }
}

/// QEMU calls this once, when it loads the plugin.
///
/// # Safety
///
/// Only QEMU may call it, with a valid description of itself and `count` C strings.
// SAFETY: the name is the interface's, and no other symbol of this library has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: ffi::PluginId,
    info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    // SAFETY: as the caller promises.
    let (info, target, arguments) = unsafe {
        let info = &*info.cast::<ffi::Info>();
        let text = |at: *const c_char| CStr::from_ptr(at).to_string_lossy().into_owned();
        let arguments: Vec<String> =
            (0..count.max(0) as usize).map(|index| text(*arguments.add(index))).collect();
        (info, text(info.target_name), arguments)
    };
    match prepare(info, &target, arguments.into_iter()) {
        Ok(recorder) => {
            // SAFETY: no vCPU runs yet, so that nothing else uses it.
            unsafe { *GLOBAL.0.get() = Some((id, recorder)) };
            on_reset(id);
            0
        }
        Err(error) => {
            eprintln!("slat-recorder: {error}");
            1
        }
    }
}

fn prepare(
    info: &ffi::Info,
    target: &str,
    arguments: impl Iterator<Item = String>,
) -> Result<Recorder, String> {
    let arch = match target {
        "x86_64" => Arch::X86_64,
        "aarch64" => Arch::Aarch64,
        other => return Err(format!("{other} cannot be recorded: x86_64 and aarch64 can")),
    };
    if !info.system_emulation {
        return Err("only a whole system can be recorded, not a single program".into());
    }
    let vcpus = u8::try_from(info.vcpus).ok().filter(|vcpus| (1..=64).contains(vcpus));
    let vcpus = vcpus.ok_or_else(|| format!("{} vCPUs: 1 to 64 can be recorded", info.vcpus))?;
    Ok(Recorder::new(Parameters::parse(arguments)?, arch, vcpus))
}
