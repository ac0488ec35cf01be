//! The lab that the end-to-end tests share: namespaces, veth pairs, a running `ferroute`.
