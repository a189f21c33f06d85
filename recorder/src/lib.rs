//! QEMU plugin that records a real guest.
