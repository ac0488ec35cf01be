//! Output to standard output and standard error: text in columns, JSON, colours on a terminal.
//!
//! All text for users is written here, with its control characters escaped (names of interfaces may contain
//! some): no command prints by itself. Until then colours are represented by [`MARK`].

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::Usage;
use crate::control::process::terminal::printable;
use crate::histogram::file::is_stdout;

/// Begins a colour mark in text to be printed; a letter or digit follows. No name of an interface contains
/// it, nor does any other text from the kernel.
const MARK: char = '\0';

/// Writes a line to standard error at the end of the program. If standard error is a pipe that stays full
/// for a second, the line is lost, and the program ends.
pub fn last_words(line: fmt::Arguments<'_>) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if !matches!(poll(&mut fds, PollTimeout::from(1000u16)), Ok(0)) {
        let _ = writeln!(stderr.lock(), "{}", printable(&line.to_string()));
    }
}

/// An error and its causes, without those that the text has already: many errors quote their cause.
pub fn with_causes(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// Writes a line to standard error, if it is read.
pub fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", printable(&line.to_string()));
}

/// Whether one of the files to write is standard output (`-`), which is then used for that file only.
///
/// # Errors
/// [`Usage`] when more than one is.
pub fn is_taken_by(files: [&Option<PathBuf>; 3]) -> Result<bool> {
    match files.iter().filter(|file| file.as_deref().is_some_and(is_stdout)).count() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Usage("only one FILE can be `-`, standard output".into()).into()),
    }
}

/// Standard output, in the format that the user chose.
#[derive(Debug)]
pub struct Output {
    /// JSON was requested.
    pub json: bool,
    pretty: bool,
}

/// A colour for a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Normal.
    Good,
    /// Noteworthy.
    Odd,
    /// Failed.
    Bad,
}

impl Output {
    /// `pretty` implies JSON, because it has no meaning otherwise.
    pub fn new(json: bool, pretty: bool) -> Output {
        Output { json: json || pretty, pretty }
    }

    /// Prints one JSON value and a newline.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let mut out = stdout();
        if self.pretty {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
        } else {
            serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
        }
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// Prints text that contains its newlines.
    pub fn text(&self, text: &str) -> Result<()> {
        let mut out = stdout();
        write_text(&mut out, text)?;
        Ok(out.flush()?)
    }

    /// A list that is printed while it is made.
    pub fn list(&self) -> ListOutput {
        ListOutput { out: stdout(), json: self.json, pretty: self.pretty, is_begun: false }
    }

    /// Prints text in place of the last one on a terminal; elsewhere after it.
    pub fn text_anew(&self, text: &str) -> Result<()> {
        let mut out = stdout();
        let terminal = io::stdout().is_terminal();
        if terminal {
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        write_text(&mut out, text)?;
        if !terminal {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}

/// A list on standard output: lines, or the elements of a JSON array.
#[derive(Debug)]
pub struct ListOutput {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
    pretty: bool,
    is_begun: bool,
}

impl ListOutput {
    /// Prints a line of text, and its newline.
    pub fn line(&mut self, line: &impl fmt::Display) -> Result<()> {
        Ok(write_text(&mut self.out, &format!("{line}\n"))?)
    }

    /// Prints an element of the array.
    pub fn element(&mut self, element: &impl Serialize) -> Result<()> {
        let separator: &[u8] = if self.is_begun { b"," } else { b"[" };
        self.out.write_all(separator)?;
        self.is_begun = true;
        if self.pretty {
            // Strings have no newlines in JSON.
            let text = serde_json::to_string_pretty(element).map_err(io::Error::from)?;
            write!(self.out, "\n  {}", text.replace('\n', "\n  "))?;
        } else {
            serde_json::to_writer(&mut self.out, element).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Prints the end.
    pub fn finish(mut self) -> Result<()> {
        let end: &[u8] = match (self.json, self.is_begun, self.pretty) {
            (false, ..) => b"",
            (true, false, _) => b"[]\n",
            (true, true, false) => b"]\n",
            (true, true, true) => b"\n]\n",
        };
        self.out.write_all(end)?;
        Ok(self.out.flush()?)
    }
}

/// Writes text with its control characters escaped and its colour marks replaced.
fn write_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut parts = text.split(MARK);
    out.write_all(printable(parts.next().unwrap_or_default()).as_bytes())?;
    for part in parts {
        let mut chars = part.chars();
        let code: &[u8] = match chars.next() {
            Some('g') => b"\x1b[32m",
            Some('o') => b"\x1b[33m",
            Some('b') => b"\x1b[31m",
            _ => b"\x1b[0m",
        };
        out.write_all(code)?;
        out.write_all(printable(chars.as_str()).as_bytes())?;
    }
    Ok(())
}

fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Whether the reader stopped reading, as `head` does; that is not an error.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// `text` in a colour, if standard output shows colours (it is a terminal and NO_COLOR is not set); to be
/// printed by [`Output::text`].
pub fn coloured(text: &str, colour: Colour) -> String {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !wanted || !io::stdout().is_terminal() {
        return text.to_owned();
    }
    marked(text, colour)
}

fn marked(text: &str, colour: Colour) -> String {
    let code = match colour {
        Colour::Good => 'g',
        Colour::Odd => 'o',
        Colour::Bad => 'b',
    };
    format!("{MARK}{code}{text}{MARK}0")
}

/// Lines of cells, each column as wide as its widest cell, two spaces between.
pub fn columns(rows: &[Vec<String>]) -> String {
    // Escaped first, as they are printed.
    let cells = |row: &Vec<String>| row.iter().map(|cell| printable(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_that_are_quoted_are_not_repeated() {
        let error =
            anyhow::anyhow!("EINVAL").context("CPU 7: EINVAL; see taskset").context("worker");
        assert_eq!(with_causes(&error), "worker: CPU 7: EINVAL; see taskset");
        assert_eq!(with_causes(&anyhow::anyhow!("a").context("b")), "b: a");
    }

    #[test]
    fn columns_line_up_and_end_without_spaces() {
        let rows = [vec!["a".into(), "bcd".into()], vec!["efg".into(), "h".into()]];
        assert_eq!(columns(&rows), "a    bcd\nefg  h\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn columns_are_as_wide_as_they_are_printed() {
        let rows = [vec!["a\x1b[31mb".into(), "c".into()], vec!["eth0".into(), "d".into()]];
        assert_eq!(columns(&rows), "a\\x1b[31mb  c\neth0        d\n");
    }

    #[test]
    fn colours_are_printed_and_no_other_control_characters() {
        let mut out = Vec::new();
        let text = format!("{} port a\x1b[31mb\n", marked("up\x07", Colour::Good));
        write_text(&mut out, &text).expect("writes");
        let out = String::from_utf8(out).expect("text");
        assert_eq!(out, "\x1b[32mup\\x07\x1b[0m port a\\x1b[31mb\n");
    }

    #[test]
    fn a_broken_pipe_is_found_below_its_context() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::from(broken).context("writing")));
        assert!(!is_broken_pipe(&anyhow::anyhow!("else")));
    }
}
