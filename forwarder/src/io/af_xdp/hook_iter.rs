//! Reads the functions at the netfilter hooks of the IP families by a BPF iterator, on kernels
//! without nfnetlink_hook.
//!
//! The program reads `nf.hooks_ipv4` and `nf.hooks_ipv6` of the namespace (`struct net`, see
//! [`super::net_iter`]), and prints the functions that `nf_register_net_hook` has put there, as
//! kernel symbol names (`include/linux/netfilter.h`). `control::firewall` interprets them.

use std::io;

use libbpf_rs::btf::types::Struct;
use libbpf_rs::btf::{Btf, HasSize};
use libbpf_rs::libbpf_sys::bpf_insn;

use super::net_iter::{Assembler, DATA, FORMAT_HEAD, NetIter, SocketLayout, missing, offset};

/// The hooks, in the order of reading: NF_INET_PRE_ROUTING to NF_INET_POST_ROUTING.
const HOOKS: [u32; 5] = [0, 1, 2, 3, 4];
/// Maximum number of functions printed per hook; further ones are only counted. Each takes ten
/// instructions of the program.
const NAMED_MAX: u32 = 24;

/// The functions at one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFunctions {
    /// Whether these are IPv6 hooks, otherwise IPv4.
    pub ipv6: bool,
    /// NF_INET_*.
    pub hook: u32,
    /// Names in the order of execution, followed by the module, if any: `name [mod]`. Empty if the
    /// kernel does not know the name.
    pub functions: Vec<String>,
}

/// The iterator.
#[derive(Debug)]
pub struct HookIter(NetIter);

impl HookIter {
    /// Loads the program.
    ///
    /// # Errors
    /// The same as for [`NetIter::load`].
    pub fn open() -> io::Result<HookIter> {
        let load = |btf: &Btf<'_>| Ok(program(&Layout::of(btf)?));
        Ok(HookIter(NetIter::load(c"ferroute_hooks", load)?))
    }

    /// Reads the hooks of the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's error, or unexpected output of the program.
    pub fn read(&self) -> io::Result<Vec<HookFunctions>> {
        let octets = self.0.read()?;
        let text = String::from_utf8_lossy(&octets);
        parse(&text).ok_or_else(|| io::Error::other(format!("the hooks' iterator wrote {text:?}")))
    }
}

/// Offsets in the kernel's structures, in octets.
#[derive(Debug)]
struct Layout {
    socket: SocketLayout,
    /// The arrays of hooks in `struct net`: IPv4, IPv6.
    hooks: [i16; 2],
    /// The number of functions, and the first of them, in `struct nf_hook_entries`.
    count: i16,
    first: i16,
    /// Distance between functions: the size of `struct nf_hook_entry`.
    stride: i16,
}

impl Layout {
    fn of(btf: &Btf<'_>) -> io::Result<Layout> {
        let entry = btf.type_by_name::<Struct<'_>>("nf_hook_entry");
        let entry = entry.ok_or_else(|| missing("nf_hook_entry"))?;
        let stride = i16::try_from(entry.size()).map_err(|_| missing("short nf_hook_entry"))?;
        Ok(Layout {
            socket: SocketLayout::of(btf)?,
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

/// Offset on the stack, from its end.
const FORMAT_NAME: i16 = -16;
/// Format of a line for each hook: its index in the order of reading, and the number of functions.
const HEAD: [u8; 8] = *b"#%u %u\n\0";
/// Format of a line for each function.
const NAME: [u8; 8] = *b"%ps\n\0\0\0\0";
/// Its length in octets, including the NUL.
const NAME_LEN: i32 = 5;

/// The instructions, see Documentation/bpf/standardization/instruction-set.rst.
fn program(layout: &Layout) -> Vec<bpf_insn> {
    let (sixty_four, sixteen) = (0x79, 0x69);
    let mut code = Assembler::default();
    // r7: namespace; r9: seq; r8: entries; r6: number of entries.
    code.begin(&layout.socket);
    code.store_octets(FORMAT_HEAD, HEAD);
    code.store_octets(FORMAT_NAME, NAME);
    for (family, hooks) in layout.hooks.into_iter().enumerate() {
        for (n, hook) in HOOKS.into_iter().enumerate() {
            code.load(sixty_four, 8, 7, hooks + 8 * hook as i16);
            // A null pointer if there are none: the load then returns zero.
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

/// Parses the program's output; `None` if it is incomplete.
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
            // A kernel without symbol names prints the address.
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
    fn only_complete_output_is_parsed() {
        let text = "#0 0\n#1 0\n#2 2\nipt_do_table [ip_tables]\n0xffffffff81000000\n#3 0\n#4 0\n#5 0\n#6 0\n#7 0\n#8 0\n#9 0\n";
        let found = parse(text).expect("is right");
        assert_eq!(found.len(), 10);
        let forward = HookFunctions {
            ipv6: false,
            hook: 2,
            functions: vec!["ipt_do_table [ip_tables]".into(), String::new()],
        };
        assert_eq!(found[2], forward);
        assert_eq!((found[9].ipv6, found[9].hook), (true, 4));
        for cut in 0..text.len() - 1 {
            assert!(parse(&text[..cut]).is_none(), "{:?}", &text[..cut]);
        }
        for wrong in [format!("{text}#10 0\n"), format!("\n{text}"), text.replace("#2 2", "#2 3")] {
            assert_eq!(parse(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn functions_beyond_the_named_ones_are_counted() {
        let names = "f\n".repeat(NAMED_MAX as usize);
        let text = format!("#0 30\n{names}#1 0\n#2 0\n#3 0\n#4 0\n#5 0\n#6 0\n#7 0\n#8 0\n#9 0\n");
        let found = parse(&text).expect("is right");
        assert_eq!(found[0].functions.len(), 30);
        assert_eq!(found[0].functions.iter().filter(|name| name.is_empty()).count(), 6);
    }
}
