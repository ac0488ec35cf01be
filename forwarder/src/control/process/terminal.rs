//! Escapes text for terminals and logs.
//!
//! Names of interfaces are octets that the kernel hardly restricts (`dev_valid_name`): they may
//! contain escape sequences. All output for people goes through [`printable`], at the few places
//! that write it; JSON has its own escapes.

use std::borrow::Cow;
use std::fmt::Write;

/// Escapes control characters (`\x1b`), and characters that are invisible or change the text
/// direction (`\u{202e}`). Newlines and tabs are kept: names cannot contain them.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |octet: u8| matches!(octet, b' '..=b'~' | b'\n' | b'\t');
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = match c {
            '\n' | '\t' => out.write_char(c),
            _ if c.is_control() => write!(out, "\\x{:02x}", c as u32),
            _ if is_invisible(c) => write!(out, "{}", c.escape_unicode()),
            _ => out.write_char(c),
        };
    }
    Cow::Owned(out)
}

/// Whether a character has no glyph and may hide others or reverse their order (Unicode general
/// category Cf, and line separators).
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_and_invisible_characters_are_escaped() {
        for (text, expected) in [
            ("eth0: up\n\tmtu 1500\n", "eth0: up\n\tmtu 1500\n"),
            ("a\x1b[31mb", "a\\x1b[31mb"),
            ("\x01\x7f\u{9b}2J\r", "\\x01\\x7f\\x9b2J\\x0d"),
            ("größe→1", "größe→1"),
            ("eth\u{202e}0\u{200b}", "eth\\u{202e}0\\u{200b}"),
            ("a\\x1b", "a\\x1b"),
        ] {
            assert_eq!(printable(text), expected);
            assert_eq!(printable(&printable(text)), expected, "escaping is idempotent");
        }
    }
}
