//! The functions at the netfilter hooks of forwarded packets, read by a BPF iterator: what
//! nfnetlink_hook lists, on kernels that are built without it.
//!
//! The kernel runs an iterator's program for each of its objects, here netlink sockets, of which this
//! network namespace has one at least: ours. From the first the program goes to the namespace
//! (`struct net`) and writes down what `nf_register_net_hook` has put into its arrays `nf.hooks_ipv4`
//! and `nf.hooks_ipv6`, by names of the kernel's symbols. The places of the members are taken from
//! the kernel's own description of its types (BTF), and the verifier checks them against it. So the
//! program is not compiled but put together here. (`include/linux/netfilter.h`;
//! Documentation/bpf/bpf_iterators.rst; Linux 5.9 with CONFIG_DEBUG_INFO_BTF.)
//!
//! Needs CAP_BPF and CAP_PERFMON. What the functions mean is `control::firewall`'s.

#![expect(
    unsafe_code,
    reason = "programs of single instructions and iterators have no safe wrapper"
)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use libbpf_rs::btf::types::{Composite, Func, MemberAttr, Struct};
use libbpf_rs::btf::{Btf, BtfType, HasSize};
use libbpf_rs::libbpf_sys::{self, bpf_insn};

/// The hooks, in the order in which they are read: NF_INET_PRE_ROUTING, NF_INET_FORWARD,
/// NF_INET_POST_ROUTING.
const HOOKS: [u32; 3] = [0, 2, 4];
/// Functions of one hook that are named; of more it is known that they are there. Each takes ten
/// instructions of the program.
const NAMED_MAX: u32 = 24;

/// The functions at one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFunctions {
    /// Of the IPv6 hooks, or the IPv4 hooks.
    pub ipv6: bool,
    /// NF_INET_*.
    pub hook: u32,
    /// Names in the order in which they run, the module behind a blank if it is of one: `name [mod]`.
    /// Empty where the kernel has no name.
    pub functions: Vec<String>,
}

/// The iterator.
#[derive(Debug)]
pub struct HookIter {
    link: OwnedFd,
}

impl HookIter {
    /// Loads the program. Reading the kernel's types takes some ten milliseconds.
    ///
    /// # Errors
    /// EPERM without the capabilities; when the kernel has no BTF, or its types are not those that
    /// are looked for; what the verifier says.
    pub fn open() -> io::Result<HookIter> {
        let other = |error: libbpf_rs::Error| io::Error::other(format!("{error:#}"));
        let btf = Btf::from_vmlinux().map_err(other)?;
        let program = program(&Layout::of(&btf)?);
        let target = btf.type_by_name::<Func<'_>>("bpf_iter_netlink");
        let target = u32::from(target.ok_or_else(|| missing("bpf_iter_netlink"))?.type_id());
        let mut opts = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: libbpf_sys::BPF_TRACE_ITER,
            attach_btf_id: target,
            ..Default::default()
        };
        // SAFETY: the instructions are as many as is said, the strings end with zero, and all live
        // through the call; what the instructions do is the verifier's to judge.
        let program = owned(unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_TRACING,
                c"ferroute_hooks".as_ptr(),
                // Helpers that write text are for programs under the GPL.
                c"Dual MIT/GPL".as_ptr(),
                program.as_ptr(),
                program.len() as libbpf_sys::size_t,
                &raw mut opts,
            )
        })?;
        // SAFETY: numbers and no options.
        let link = owned(unsafe {
            libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                0,
                libbpf_sys::BPF_TRACE_ITER,
                ptr::null(),
            )
        })?;
        Ok(HookIter { link })
    }

    /// What is at the hooks of the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel says, or when it says something else than was expected.
    pub fn read(&self) -> io::Result<Vec<HookFunctions>> {
        // SAFETY: a number.
        let iter = owned(unsafe { libbpf_sys::bpf_iter_create(self.link.as_raw_fd()) })?;
        let mut text = String::new();
        File::from(iter).read_to_string(&mut text)?;
        parse(&text).ok_or_else(|| io::Error::other(format!("the hooks' iterator wrote {text:?}")))
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a new descriptor that nothing else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn missing(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's types have no {what}"))
}

/// Offsets in the kernel's structures, in octets.
#[derive(Debug)]
struct Layout {
    /// Of `seq` and `seq_num` in `struct bpf_iter_meta`.
    seq: i16,
    seq_num: i16,
    /// Of the namespace in `struct netlink_sock`.
    net: i16,
    /// Of the arrays of hooks in `struct net`: IPv4, IPv6.
    hooks: [i16; 2],
    /// Of the number of functions and of the first of them in `struct nf_hook_entries`.
    count: i16,
    first: i16,
    /// From one function to the next: the size of `struct nf_hook_entry`.
    stride: i16,
}

impl Layout {
    fn of(btf: &Btf<'_>) -> io::Result<Layout> {
        let entry = btf.type_by_name::<Struct<'_>>("nf_hook_entry");
        let entry = entry.ok_or_else(|| missing("nf_hook_entry"))?;
        let stride = i16::try_from(entry.size()).map_err(|_| missing("short nf_hook_entry"))?;
        Ok(Layout {
            seq: offset(btf, "bpf_iter_meta", &["seq"])?,
            seq_num: offset(btf, "bpf_iter_meta", &["seq_num"])?,
            net: offset(btf, "netlink_sock", &["sk", "__sk_common", "skc_net", "net"])?,
            hooks: [
                offset(btf, "net", &["nf", "hooks_ipv4"])?,
                offset(btf, "net", &["nf", "hooks_ipv6"])?,
            ],
            count: offset(btf, "nf_hook_entries", &["num_hook_entries"])?,
            first: offset(btf, "nf_hook_entries", &["hooks"])?
                + offset(btf, "nf_hook_entry", &["hook"])?,
            stride,
        })
    }
}

/// Where a member of a member of … a structure is.
fn offset(btf: &Btf<'_>, structure: &str, path: &[&str]) -> io::Result<i16> {
    let wanted = || missing(&format!("{structure}.{}", path.join(".")));
    let mut at = btf.type_by_name::<BtfType<'_>>(structure).ok_or_else(wanted)?;
    let mut bits = 0;
    for name in path {
        let (offset, kind) = member(btf, at, name).ok_or_else(wanted)?;
        bits += offset;
        at = kind;
    }
    i16::try_from(bits / 8).map_err(|_| wanted())
}

/// A member's offset in bits, and its type. It may be in a union without a name.
fn member<'b>(btf: &'b Btf<'b>, of: BtfType<'b>, name: &str) -> Option<(u32, BtfType<'b>)> {
    let composite = Composite::try_from(of.skip_mods_and_typedefs()).ok()?;
    composite.iter().find_map(|member| {
        let MemberAttr::Normal { offset } = member.attr else { return None };
        let kind = btf.type_by_id::<BtfType<'_>>(member.ty)?;
        match member.name {
            Some(own) => (own == name).then_some((offset, kind)),
            None => self::member(btf, kind, name).map(|(inner, kind)| (offset + inner, kind)),
        }
    })
}

/// BPF_FUNC_seq_printf.
const SEQ_PRINTF: i32 = 126;
/// Of the stack, from its end: the two formats and what they are filled with.
const FORMAT_HEAD: i16 = -8;
const FORMAT_NAME: i16 = -16;
const DATA: i16 = -32;
/// One line a hook: its number in the order of reading, and how many functions there are.
const HEAD: [u8; 8] = *b"#%u %u\n\0";
/// One line a function.
const NAME: [u8; 8] = *b"%ps\n\0\0\0\0";
/// Octets of that, the zero included.
const NAME_LEN: i32 = 5;

/// The instructions, see Documentation/bpf/standardization/instruction-set.rst.
fn program(layout: &Layout) -> Vec<bpf_insn> {
    let (sixty_four, sixteen) = (0x79, 0x69);
    let mut code = Assembler::default();
    // r6: context; r9: meta, then seq; r7: socket, then namespace; r8: entries; r6: their number.
    code.copy(6, 1);
    code.load(sixty_four, 9, 6, 0);
    code.load(sixty_four, 2, 9, layout.seq_num);
    // Of the first socket only.
    code.leave_unless_zero(2);
    code.load(sixty_four, 7, 6, 8);
    code.leave_if_zero(7);
    code.load(sixty_four, 7, 7, layout.net);
    code.load(sixty_four, 9, 9, layout.seq);
    code.store_octets(FORMAT_HEAD, HEAD);
    code.store_octets(FORMAT_NAME, NAME);
    for (family, hooks) in layout.hooks.into_iter().enumerate() {
        for (n, hook) in HOOKS.into_iter().enumerate() {
            code.load(sixty_four, 8, 7, hooks + 8 * hook as i16);
            // Null where there is none: then the load gives zero.
            code.load(sixteen, 6, 8, layout.count);
            code.store_number(DATA, (family * HOOKS.len() + n) as i32);
            code.store(DATA + 8, 6);
            code.print(FORMAT_HEAD, HEAD.len() as i32, 16);
            let mut ends = Vec::new();
            for entry in 0..NAMED_MAX {
                ends.push(code.skip_unless_above(6, entry as i32));
                code.load(sixty_four, 1, 8, layout.first + entry as i16 * layout.stride);
                code.store(DATA, 1);
                code.print(FORMAT_NAME, NAME_LEN, 8);
            }
            ends.into_iter().for_each(|end| code.land(end));
        }
    }
    code.finish()
}

/// Puts instructions together. Registers are r0 to r10, of which r10 is the end of the stack.
#[derive(Default)]
struct Assembler {
    code: Vec<bpf_insn>,
    /// Jumps to the end.
    leaving: Vec<usize>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, off: i16, imm: i32) {
        let _bitfield_1 = bpf_insn::new_bitfield_1(to, from);
        self.code.push(bpf_insn { code, _bitfield_1, off, imm, ..Default::default() });
    }

    /// BPF_ALU64 | BPF_MOV | BPF_X.
    fn copy(&mut self, to: u8, from: u8) {
        self.push(0xbf, to, from, 0, 0);
    }

    /// BPF_LDX | BPF_MEM of a size.
    fn load(&mut self, size: u8, to: u8, from: u8, off: i16) {
        self.push(size, to, from, off, 0);
    }

    /// BPF_STX | BPF_MEM | BPF_DW.
    fn store(&mut self, off: i16, from: u8) {
        self.push(0x7b, 10, from, off, 0);
    }

    /// BPF_ST | BPF_MEM | BPF_DW.
    fn store_number(&mut self, off: i16, number: i32) {
        self.push(0x7a, 10, 0, off, number);
    }

    /// BPF_LD | BPF_IMM | BPF_DW, which takes two instructions, and a store.
    fn store_octets(&mut self, off: i16, octets: [u8; 8]) {
        let number = u64::from_ne_bytes(octets);
        self.push(0x18, 1, 0, 0, number as i32);
        self.push(0, 0, 0, 0, (number >> 32) as i32);
        self.store(off, 1);
    }

    /// `bpf_seq_printf(r9, format, len, DATA, data)`: format and data are on the stack.
    fn print(&mut self, format: i16, len: i32, data: i32) {
        // BPF_ALU64 | BPF_ADD | BPF_K, BPF_ALU64 | BPF_MOV | BPF_K.
        let (add, set) = (0x07, 0xb7);
        self.copy(1, 9);
        self.copy(2, 10);
        self.push(add, 2, 0, 0, format.into());
        self.push(set, 3, 0, 0, len);
        self.copy(4, 10);
        self.push(add, 4, 0, 0, DATA.into());
        self.push(set, 5, 0, 0, data);
        // BPF_JMP | BPF_CALL.
        self.push(0x85, 0, 0, 0, SEQ_PRINTF);
    }

    /// BPF_JMP | BPF_JNE | BPF_K.
    fn leave_unless_zero(&mut self, register: u8) {
        self.leaving.push(self.code.len());
        self.push(0x55, register, 0, 0, 0);
    }

    /// BPF_JMP | BPF_JEQ | BPF_K.
    fn leave_if_zero(&mut self, register: u8) {
        self.leaving.push(self.code.len());
        self.push(0x15, register, 0, 0, 0);
    }

    /// BPF_JMP | BPF_JLE | BPF_K: a jump to where it [lands](Self::land).
    fn skip_unless_above(&mut self, register: u8, number: i32) -> usize {
        self.push(0xb5, register, 0, 0, number);
        self.code.len() - 1
    }

    /// A jump counts from the instruction behind it.
    fn land(&mut self, jump: usize) {
        self.code[jump].off = (self.code.len() - jump - 1) as i16;
    }

    fn finish(mut self) -> Vec<bpf_insn> {
        for jump in std::mem::take(&mut self.leaving) {
            self.land(jump);
        }
        // r0 = 0, BPF_JMP | BPF_EXIT.
        self.push(0xb7, 0, 0, 0, 0);
        self.push(0x95, 0, 0, 0, 0);
        self.code
    }
}

/// Reads what the program wrote; `None`: something is missing.
fn parse(text: &str) -> Option<Vec<HookFunctions>> {
    let mut lines = text.lines().peekable();
    let mut found = Vec::new();
    for (n, ipv6) in [false, true].into_iter().flat_map(|v6| [v6; HOOKS.len()]).enumerate() {
        let (number, count) = lines.next()?.strip_prefix('#')?.split_once(' ')?;
        if number.parse() != Ok(n) {
            return None;
        }
        let count: usize = count.parse().ok()?;
        let mut functions = Vec::new();
        for _ in 0..count.min(NAMED_MAX as usize) {
            let name = lines.next_if(|line| !line.starts_with('#'))?;
            // A kernel that does not know its symbols prints the address.
            let name = if name.starts_with("0x") { "" } else { name };
            functions.push(name.to_owned());
        }
        functions.resize(count, String::new());
        found.push(HookFunctions { ipv6, hook: HOOKS[n % HOOKS.len()], functions });
    }
    lines.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_writes_is_read_and_nothing_else() {
        let text =
            "#0 0\n#1 2\nipt_do_table [ip_tables]\n0xffffffff81000000\n#2 0\n#3 0\n#4 0\n#5 0\n";
        let found = parse(text).expect("is right");
        assert_eq!(found.len(), 6);
        let forward = HookFunctions {
            ipv6: false,
            hook: 2,
            functions: vec!["ipt_do_table [ip_tables]".into(), String::new()],
        };
        assert_eq!(found[1], forward);
        assert_eq!((found[5].ipv6, found[5].hook), (true, 4));
        for cut in 0..text.len() - 1 {
            assert!(parse(&text[..cut]).is_none(), "{:?}", &text[..cut]);
        }
        for wrong in [format!("{text}#6 0\n"), format!("\n{text}"), text.replace("#1 2", "#1 3")] {
            assert_eq!(parse(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn functions_beyond_those_that_are_named_count() {
        let names = "f\n".repeat(NAMED_MAX as usize);
        let text = format!("#0 30\n{names}#1 0\n#2 0\n#3 0\n#4 0\n#5 0\n");
        let found = parse(&text).expect("is right");
        assert_eq!(found[0].functions.len(), 30);
        assert_eq!(found[0].functions.iter().filter(|name| name.is_empty()).count(), 6);
    }
}
