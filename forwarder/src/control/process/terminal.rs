//! Text for terminals and logs: what must not reach them as it is.
//!
//! Names of interfaces are octets that the kernel hardly restricts (`dev_valid_name`): they may hold
//! escape sequences. Everything that is printed for people goes through [`printable`], at the few
//! places that write; JSON has an escape of its own.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with its control characters written out, as `\x1b`; likewise characters that change the
/// order or are not to be seen (`\u{202e}`). Line ends and tabs stay: no name has them.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |octet: u8| matches!(octet, b' '..=b'~' | b'\n' | b'\t');
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // A String takes everything.
        let _ = match c {
            '\n' | '\t' => out.write_char(c),
            _ if c.is_control() => write!(out, "\\x{:02x}", c as u32),
            _ if is_invisible(c) => write!(out, "{}", c.escape_unicode()),
            _ => out.write_char(c),
        };
    }
    Cow::Owned(out)
}

/// Whether a character has no glyph and may hide others, or turn their order round (Unicode, general
/// category Cf, and the separators of lines).
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
    fn control_characters_are_written_out_and_nothing_else_is() {
        for (text, expected) in [
            ("eth0: up\n\tmtu 1500\n", "eth0: up\n\tmtu 1500\n"),
            ("a\x1b[31mb", "a\\x1b[31mb"),
            ("\x01\x7f\u{9b}2J\r", "\\x01\\x7f\\x9b2J\\x0d"),
            ("größe→1", "größe→1"),
            ("eth\u{202e}0\u{200b}", "eth\\u{202e}0\\u{200b}"),
            ("a\\x1b", "a\\x1b"),
        ] {
            assert_eq!(printable(text), expected);
            assert_eq!(printable(&printable(text)), expected, "once is enough");
        }
    }
}
