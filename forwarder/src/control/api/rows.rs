//! Lists written while they are made: one [`Response::Rendered`](super::Response::Rendered), of which no
//! more than a row and a buffer is in memory at a time.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::{API_VERSION, Format};

/// Octets buffered before they are written.
const BUFFER: usize = 1 << 14;

/// Makes a list, some rows at a time. Called on the thread of the connection.
pub trait List: Send {
    /// Writes the next rows. Returns whether there are more.
    ///
    /// # Errors
    /// [`ListError`]: the list ends here.
    fn write_some(&mut self, to: &mut RowWriter<'_>) -> Result<bool, ListError>;
}

/// Why a list is incomplete.
#[derive(Debug)]
pub enum ListError {
    /// It cannot be made; the text is for the user.
    Refused(String),
    /// The connection failed.
    Io(io::Error),
}

impl From<io::Error> for ListError {
    fn from(error: io::Error) -> ListError {
        ListError::Io(error)
    }
}

/// Writes rows to the connection.
pub struct RowWriter<'a> {
    to: BufWriter<&'a mut dyn Write>,
    format: Format,
    rows: u64,
}

impl std::fmt::Debug for RowWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowWriter").field("format", &self.format).field("rows", &self.rows).finish()
    }
}

impl<'a> RowWriter<'a> {
    /// For a list of which nothing has been written.
    pub fn new(to: &'a mut dyn Write, format: Format) -> RowWriter<'a> {
        RowWriter { to: BufWriter::with_capacity(BUFFER, to), format, rows: 0 }
    }

    /// Whether nothing has been written, so that an error may be written instead.
    pub fn is_untouched(&self) -> bool {
        self.rows == 0
    }

    /// Writes a row: an element in JSON; its lines in text, each with a newline.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn row(&mut self, row: &(impl Serialize + Display)) -> io::Result<()> {
        match self.format {
            Format::Json => self.element(row),
            Format::Text => self.lines(row),
        }
    }

    /// Writes an element of a list in JSON.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn element(&mut self, element: &impl Serialize) -> io::Result<()> {
        self.separate()?;
        Ok(serde_json::to_writer(&mut self.to, element)?)
    }

    /// Writes lines of a list in text, which end with a newline.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn lines(&mut self, lines: &impl Display) -> io::Result<()> {
        self.separate()?;
        let mut text = lines.to_string();
        text.truncate(text.trim_end_matches('\n').len());
        text.push('\n');
        let quoted = serde_json::to_string(&text)?;
        // All lines are inside of one JSON string.
        self.to.write_all(&quoted.as_bytes()[1..quoted.len() - 1])
    }

    /// Writes what is buffered; nothing is kept while the next rows are waited for.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Ends the list.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn finish(mut self) -> io::Result<()> {
        if self.rows == 0 {
            self.begin()?;
        }
        self.to.write_all(match self.format {
            Format::Json => b"]}}}\n",
            Format::Text => b"\"}}}\n",
        })?;
        self.to.flush()
    }

    fn begin(&mut self) -> io::Result<()> {
        write!(self.to, "{{\"version\":{API_VERSION},\"body\":{{\"rendered\":")?;
        self.to.write_all(match self.format {
            Format::Json => b"{\"json\":[",
            Format::Text => b"{\"text\":\"",
        })
    }

    fn separate(&mut self) -> io::Result<()> {
        if self.rows == 0 {
            self.begin()?;
        } else if self.format == Format::Json {
            self.to.write_all(b",")?;
        }
        self.rows += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Envelope, Rendered, Response};

    #[derive(Serialize)]
    struct Row<'a> {
        name: &'a str,
    }

    impl Display for Row<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.name)
        }
    }

    fn written(format: Format, names: &[&str]) -> Rendered {
        let mut octets = Vec::new();
        let mut writer = RowWriter::new(&mut octets, format);
        names.iter().for_each(|name| writer.row(&Row { name }).expect("a vector"));
        assert_eq!(writer.is_untouched(), names.is_empty());
        writer.finish().expect("a vector");
        assert_eq!(octets.pop(), Some(b'\n'));
        assert!(!octets.contains(&b'\n'), "one line");
        match serde_json::from_slice(&octets).expect("an answer") {
            Envelope { version: API_VERSION, body: Response::Rendered(rendered) } => rendered,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_make_one_answer() {
        let names = ["a \"quoted\" name", "two\nlines\n", "\"", "\u{1b}[1m\u{e9}"];
        let expected = "a \"quoted\" name\ntwo\nlines\n\"\n\u{1b}[1m\u{e9}\n";
        assert_eq!(written(Format::Text, &names), Rendered::Text(expected.into()));
        let expected = names.map(|name| serde_json::json!({ "name": name }));
        assert_eq!(written(Format::Json, &names), Rendered::Json(expected.to_vec().into()));
    }

    #[test]
    fn an_empty_list_is_an_answer() {
        assert_eq!(written(Format::Text, &[]), Rendered::Text(String::new()));
        assert_eq!(written(Format::Json, &[]), Rendered::Json(serde_json::json!([])));
    }
}
