//! Measurements and probes on /dev/kvm.
