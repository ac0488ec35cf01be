//! Names of flags, as iproute2 has them.

/// XFRM_STATE_*.
pub const STATE_FLAGS: [(u32, &str); 8] = [
    (1, "noecn"),
    (2, "decap-dscp"),
    (4, "nopmtudisc"),
    (8, "wildrecv"),
    (16, "icmp"),
    (32, "af-unspec"),
    (64, "align4"),
    (128, "esn"),
];
/// XFRM_SA_XFLAG_*.
pub const EXTRA_FLAGS: [(u32, &str); 2] = [(1, "dont-encap-dscp"), (2, "oseq-may-wrap")];
/// XFRM_POLICY_LOCALOK and ICMP.
pub const POLICY_FLAGS: [(u32, &str); 2] = [(1, "localok"), (2, "icmp")];
