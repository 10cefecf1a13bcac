//! Offsets of fields in the kernel's structures, from its own BTF (Documentation/bpf/btf.rst): right for any kernel,
//! also where layouts are randomised.

use std::fs;
use std::sync::OnceLock;
use uvn_wire::cgroup::{Datagram, UnixSocket, Way};

/// The kernel's BTF.
const FILE: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// The bytes of `struct btf_type`.
const TYPE: usize = 12;

/// The lockdown state (kernel_lockdown(7)): under `confidentiality` no program that reads the kernel's memory is
/// loaded.
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// The offsets that the programs read at in the running kernel; None: it has no BTF, or is locked down.
#[derive(Debug, Clone, Copy, Default)]
pub struct Layouts {
    /// From a process to its executable.
    pub way: Option<Way>,
    /// In a Unix socket.
    pub unix_socket: Option<UnixSocket>,
    /// In a datagram socket.
    pub datagram: Option<Datagram>,
}

/// [`Layouts::way`] of the running kernel.
#[must_use]
pub fn way() -> Option<Way> {
    layouts().way
}

/// See [`Layouts`].
#[must_use]
pub fn layouts() -> Layouts {
    static LAYOUTS: OnceLock<Layouts> = OnceLock::new();
    *LAYOUTS.get_or_init(|| {
        let locked = fs::read_to_string(LOCKDOWN).is_ok_and(|state| state.contains("[confidentiality]"));
        let bytes = fs::read(FILE).ok().filter(|_| !locked).unwrap_or_default();
        Btf::parse(&bytes).map_or_else(Layouts::default, |btf| Layouts {
            way: way_in(&btf),
            unix_socket: unix_socket_in(&btf),
            datagram: datagram_in(&btf),
        })
    })
}

fn way_in(btf: &Btf<'_>) -> Option<Way> {
    Some(Way {
        mm: btf.offset("task_struct", "mm")?,
        exe_file: btf.offset("mm_struct", "exe_file")?,
        f_inode: btf.offset("file", "f_inode")?,
        i_ino: btf.offset("inode", "i_ino")?,
        i_sb: btf.offset("inode", "i_sb")?,
        s_dev: btf.offset("super_block", "s_dev")?,
    })
}

fn unix_socket_in(btf: &Btf<'_>) -> Option<UnixSocket> {
    Some(UnixSocket {
        net: btf.offset("sock", "__sk_common")? + btf.offset("sock_common", "skc_net")?,
        net_cookie: btf.offset("net", "net_cookie")?,
        socket: btf.offset("sock", "sk_socket")?,
        sock: btf.offset("socket", "sk")?,
        file: btf.offset("socket", "file")?,
        f_cred: btf.offset("file", "f_cred")?,
        uid: btf.offset("cred", "uid")?,
        addr: btf.offset("unix_sock", "addr")?,
        path: btf.offset("unix_address", "name")? + btf.offset("sockaddr_un", "sun_path")?,
    })
}

fn datagram_in(btf: &Btf<'_>) -> Option<Datagram> {
    /// include/net/sock.h
    const SOCK_BINDPORT_LOCK: u32 = 8;

    let locks = btf.bit("sock", "sk_userlocks")?;
    Some(Datagram {
        kind: btf.offset("socket", "type")?,
        sock: btf.offset("socket", "sk")?,
        family: btf.offset("sock", "__sk_common")? + btf.offset("sock_common", "skc_family")?,
        locks: locks / 8,
        port_lock: SOCK_BINDPORT_LOCK << (locks % 8),
    })
}

/// The types of one BTF file.
struct Btf<'a> {
    strings: &'a [u8],
    /// Each type with its members, in the order of their numbers, from 1.
    types: Vec<&'a [u8]>,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Btf<'a>> {
        // struct btf_header: magic, version, flags, length; then offset and length of either section.
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        let sections = bytes.get(word(bytes, 4)? as usize..).filter(|_| magic == MAGIC)?;
        let section = |at: usize| {
            let (start, length) = (word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            sections.get(start..start.checked_add(length)?)
        };
        let (mut rest, strings) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (whole, more) = rest.split_at_checked(TYPE + members_length(word(rest, 4)?)?)?;
            types.push(whole);
            rest = more;
        }
        Some(Btf { strings, types })
    }

    /// The offset of a structure's member, in bytes.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.bit(structure, member).map(|bit| bit / 8)
    }

    /// The offset in bits; members of anonymous structures and unions inside are found, too.
    fn bit(&self, structure: &str, member: &str) -> Option<u32> {
        let named = |kind: &&&[u8]| {
            kind_of(kind) == Some(STRUCT)
                && members(kind).next().is_some()
                && word(kind, 0).is_some_and(|name| self.is_called(name, structure))
        };
        self.bit_in(self.types.iter().find(named)?, member, 0)
    }

    fn bit_in(&self, structure: &[u8], member: &str, depth: u32) -> Option<u32> {
        /// Deeper than anything in the kernel is nested.
        const DEEPEST: u32 = 8;

        if depth > DEEPEST || !matches!(kind_of(structure)?, STRUCT | UNION) {
            return None;
        }
        // With kind_flag the upper byte is a bit field's width.
        let bits = if word(structure, 4)? >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        members(structure).find_map(|entry| {
            let (name, number) = (word(entry, 0)?, word(entry, 4)?);
            let own = word(entry, 8)? & bits;
            if self.is_called(name, member) {
                return Some(own);
            }
            let nameless = (name == 0).then(|| self.types.get((number as usize).checked_sub(1)?))??;
            own.checked_add(self.bit_in(nameless, member, depth + 1)?)
        })
    }

    fn is_called(&self, name: u32, wanted: &str) -> bool {
        let rest = self.strings.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        rest.and_then(<[u8]>::first) == Some(&0)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn kind_of(whole: &[u8]) -> Option<u32> {
    Some(word(whole, 4)? >> 24 & 0x1f)
}

/// The members of a structure: name, type, offset.
fn members(structure: &[u8]) -> impl Iterator<Item = &[u8]> {
    structure.get(TYPE..).unwrap_or_default().chunks_exact(12)
}

/// How many bytes follow a type with this `info`; None: its kind is not known.
fn members_length(info: u32) -> Option<usize> {
    let count = (info & 0xffff) as usize;
    Some(match info >> 24 & 0x1f {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, 64-bit enumeration.
        STRUCT | UNION | 15 | 19 => count * 12,
        // Enumeration, prototype.
        6 | 13 => count * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct a { int x; struct { struct c *d; int e; }; }`, with `c` declared before it is there.
    fn file() -> Vec<u8> {
        let strings = b"\0a\0x\0d\0e\0c\0int\0";
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types: &[u32] = &[
            // 1: int; 2: forward c; 3: pointer to it; 4: the nameless part; 5: a without members; 6: a.
            11,
            kind(1, 0),
            4,
            0x20, //
            9,
            kind(7, 0),
            0, //
            0,
            kind(2, 0),
            2, //
            0,
            kind(STRUCT, 2),
            16,
            5,
            3,
            0,
            7,
            1,
            64, //
            1,
            kind(STRUCT, 0),
            0, //
            1,
            kind(STRUCT, 2),
            24,
            3,
            1,
            0,
            0,
            4,
            64,
        ];
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut file = MAGIC.to_ne_bytes().to_vec();
        file.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            file.extend((word as u32).to_ne_bytes());
        }
        [file, types, strings.to_vec()].concat()
    }

    #[test]
    fn members_are_found_also_in_nameless_parts() {
        let file = file();
        let btf = Btf::parse(&file).unwrap();
        assert_eq!(["x", "d", "e"].map(|member| btf.offset("a", member)), [Some(0), Some(8), Some(16)]);
        assert_eq!(btf.bit("a", "e"), Some(128));
        assert_eq!((btf.offset("a", "c"), btf.offset("c", "x"), btf.offset("", "x")), (None, None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(at in 0_usize..120, byte: u8, length in 0_usize..200) {
            let mut file = file();
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
            file.truncate(length);
            if let Some(btf) = Btf::parse(&file) {
                let _any = btf.offset("a", "e");
            }
        }
    }
}
