//! Machines that run: hosts with partitions, guest kernel model, cost model.
