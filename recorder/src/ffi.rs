//! The functions of QEMU's plugin interface, version 4 (QEMU 10.0), that the recorder calls, and two
//! of GLib's that QEMU itself is linked with. Written from the interface's documentation; only QEMU
//! can resolve them, when it loads this library.

use std::ffi::{c_char, c_int, c_uint, c_void};

pub(crate) type PluginId = u64;

#[repr(C)]
pub(crate) struct Info {
    pub(crate) target_name: *const c_char,
    pub(crate) oldest: c_int,
    pub(crate) current: c_int,
    pub(crate) system_emulation: bool,
    pub(crate) vcpus: c_int,
    pub(crate) most_vcpus: c_int,
}

#[repr(C)]
pub(crate) struct GArray {
    pub(crate) data: *mut u8,
    pub(crate) len: c_uint,
}

#[repr(C)]
pub(crate) struct RegisterDescriptor {
    pub(crate) handle: *mut c_void,
    pub(crate) name: *const c_char,
    pub(crate) feature: *const c_char,
}

pub(crate) type VcpuCallback = extern "C" fn(c_uint, *mut c_void);
pub(crate) type MemoryCallback = extern "C" fn(c_uint, u32, u64, *mut c_void);
pub(crate) type TranslateCallback = extern "C" fn(PluginId, *mut c_void);
pub(crate) type ResetCallback = extern "C" fn(PluginId);
pub(crate) type ExitCallback = extern "C" fn(PluginId, *mut c_void);

/// The callback reads no register.
pub(crate) const NO_REGISTERS: c_int = 0;
/// The callback may read registers.
pub(crate) const READ_REGISTERS: c_int = 1;
/// Loads and stores.
pub(crate) const LOADS_AND_STORES: c_int = 3;
/// `CLOCK_THREAD_CPUTIME_ID` of Linux.
const THREAD_CPU_CLOCK: c_int = 3;
/// `SIGTERM` of Linux, at which QEMU ends in good order.
pub(crate) const TERMINATE: c_int = 15;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

// SAFETY: the declarations agree with `qemu-plugin.h` of version 4 and with GLib's headers.
unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(id: PluginId, cb: TranslateCallback);
    pub(crate) fn qemu_plugin_register_atexit_cb(id: PluginId, cb: ExitCallback, data: *mut c_void);
    pub(crate) fn qemu_plugin_register_vcpu_tb_exec_cb(
        tb: *mut c_void,
        cb: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        cb: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut c_void,
        cb: MemoryCallback,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_reset(id: PluginId, cb: ResetCallback);
    pub(crate) fn qemu_plugin_tb_n_insns(tb: *const c_void) -> usize;
    pub(crate) fn qemu_plugin_tb_vaddr(tb: *const c_void) -> u64;
    pub(crate) fn qemu_plugin_tb_get_insn(tb: *const c_void, index: usize) -> *mut c_void;
    pub(crate) fn qemu_plugin_insn_data(insn: *const c_void, to: *mut u8, len: usize) -> usize;
    pub(crate) fn qemu_plugin_insn_size(insn: *const c_void) -> usize;
    pub(crate) fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;
    pub(crate) fn qemu_plugin_insn_haddr(insn: *const c_void) -> *mut u8;
    pub(crate) fn qemu_plugin_mem_size_shift(info: u32) -> c_uint;
    pub(crate) fn qemu_plugin_mem_is_store(info: u32) -> bool;
    pub(crate) fn qemu_plugin_get_hwaddr(info: u32, va: u64) -> *mut c_void;
    pub(crate) fn qemu_plugin_hwaddr_is_io(address: *const c_void) -> bool;
    pub(crate) fn qemu_plugin_hwaddr_phys_addr(address: *const c_void) -> u64;
    pub(crate) fn qemu_plugin_get_registers() -> *mut GArray;
    pub(crate) fn qemu_plugin_read_register(handle: *mut c_void, to: *mut GArray) -> c_int;
    pub(crate) fn qemu_plugin_read_memory_vaddr(va: u64, to: *mut GArray, len: usize) -> bool;
    pub(crate) fn g_byte_array_new() -> *mut GArray;
    pub(crate) fn g_byte_array_set_size(array: *mut GArray, len: c_uint) -> *mut GArray;
    fn clock_gettime(clock: c_int, to: *mut Timespec) -> c_int;
    pub(crate) fn getpid() -> c_int;
    pub(crate) fn kill(process: c_int, signal: c_int) -> c_int;
}

/// The CPU time of this thread, in seconds.
pub(crate) fn thread_cpu() -> f64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the pointer is to a value of the layout that the function fills.
    unsafe { clock_gettime(THREAD_CPU_CLOCK, &mut time) };
    time.seconds as f64 + time.nanoseconds as f64 / 1e9
}
