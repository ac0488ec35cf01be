//! Errors with the names of `/proc/net/xfrm_stat`, and their counters.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! xfrm_stat {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Why a packet is not processed: the names of the kernel's counters
        /// (Documentation/networking/xfrm_proc.rst).
        ///
        /// All counters of Linux 6.14 are here, so that they can be printed together; the last two,
        /// `XfrmInIptfsError` and `XfrmOutNoQueueSpace`, are not in the file of Linux 6.12. This library does
        /// not return those for bundles, policies for sending, and IP-TFS.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Error {
            $($(#[$doc])* $name,)*
            /// All reserved sequence numbers of the SA are used: reserve more and send again
            /// ([`Sequence::extend`](super::Sequence::extend)). The kernel has no such counter; a packet that
            /// is dropped for it counts as `XfrmOutStateSeqError`.
            SequenceRangeUsed,
        }

        impl Error {
            /// Those with a counter, in the order of the file.
            pub const COUNTED: &[Error] = &[$(Error::$name,)*];

            /// The name in `/proc/net/xfrm_stat`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Error::$name => stringify!($name),)*
                    Error::SequenceRangeUsed => "SequenceRangeUsed",
                }
            }
        }
    };
}

xfrm_stat! {
    /// An error that no other counter has.
    XfrmInError,
    /// More transformations than [`MAX_DEPTH`](super::MAX_DEPTH).
    XfrmInBufferError,
    /// A header that cannot be read.
    XfrmInHdrError,
    /// No SA for destination address, SPI and protocol.
    XfrmInNoStates,
    /// The protocol of the SA: a wrong ICV, padding or length.
    XfrmInStateProtoError,
    /// The mode of the SA: what was protected is not what the mode requires.
    XfrmInStateModeError,
    /// A sequence number that was received before or is left of the window.
    XfrmInStateSeqError,
    /// The SA has expired.
    XfrmInStateExpired,
    /// The SA's selector does not match, or UDP encapsulation is not as configured.
    XfrmInStateMismatch,
    /// The SA is not valid, for example still being negotiated.
    XfrmInStateInvalid,
    /// The transformations are not those that the policy requires.
    XfrmInTmplMismatch,
    /// A packet came through a tunnel, and no policy permits it.
    XfrmInNoPols,
    /// The policy discards.
    XfrmInPolBlock,
    /// An error of the policy.
    XfrmInPolError,
    /// An error that no other counter has: also no room around the packet, or too long a packet.
    XfrmOutError,
    /// Bundle generation.
    XfrmOutBundleGenError,
    /// Bundle check.
    XfrmOutBundleCheckError,
    /// No SA.
    XfrmOutNoStates,
    /// The protocol of the SA.
    XfrmOutStateProtoError,
    /// The mode of the SA: a packet that it cannot have.
    XfrmOutStateModeError,
    /// All sequence numbers that the protocol has are used.
    XfrmOutStateSeqError,
    /// The SA has expired.
    XfrmOutStateExpired,
    /// The policy discards.
    XfrmOutPolBlock,
    /// The policy is being removed.
    XfrmOutPolDead,
    /// An error of the policy.
    XfrmOutPolError,
    /// A header of a forwarded packet cannot be read.
    XfrmFwdHdrError,
    /// The SA is not valid.
    XfrmOutStateInvalid,
    /// An SA that is being negotiated did not become valid in time, or received a packet before.
    XfrmAcquireError,
    /// An inbound SA was used for sending.
    XfrmOutStateDirError,
    /// An outbound SA was used for receiving.
    XfrmInStateDirError,
    /// IP-TFS.
    XfrmInIptfsError,
    /// No room in the queue of IP-TFS.
    XfrmOutNoQueueSpace,
}

impl Error {
    /// The error with the counter that this one increments.
    #[must_use]
    pub const fn counted_as(self) -> Error {
        match self {
            Error::SequenceRangeUsed => Error::XfrmOutStateSeqError,
            other => other,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::error::Error for Error {}

/// The counters, in packets. Workers may share them: they are only written for errors.
#[derive(Debug, Default)]
pub struct Counters {
    packets: [AtomicU64; Error::COUNTED.len()],
}

impl Counters {
    /// Counts one packet.
    #[inline]
    pub fn count(&self, error: Error) {
        if let Some(packets) = self.packets.get(error.counted_as() as usize) {
            packets.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Packets counted for an error.
    #[must_use]
    pub fn get(&self, error: Error) -> u64 {
        let packets = self.packets.get(error.counted_as() as usize);
        packets.map_or(0, |packets| packets.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_own_counter_and_the_one_without_counts_as_a_sequence_error() {
        let counters = Counters::default();
        for &error in Error::COUNTED {
            counters.count(error);
            assert_eq!(counters.get(error), 1, "{error}");
        }
        counters.count(Error::SequenceRangeUsed);
        assert_eq!(counters.get(Error::XfrmOutStateSeqError), 2);
        assert_eq!(Error::XfrmInStateProtoError.to_string(), "XfrmInStateProtoError");
    }
}
