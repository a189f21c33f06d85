//! A software MMU: TLBs, walk caches, shadow paging and a stale-translation checker.
