//! Colours and characters that the terminal has.
//!
//! The terminal's own foreground and background are kept, and of colours only those that are legible on a dark and on a
//! light background: yellow and white are left out.

use std::ffi::OsString;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    pub colours: bool,
    /// Without it, all characters are ASCII.
    pub utf8: bool,
}

impl Theme {
    /// As the environment says: `NO_COLOR`, and the character set of the locale.
    pub fn of_environment(variable: impl Fn(&str) -> Option<OsString>) -> Theme {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        // In the order of setlocale(3).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
        let locale = locale.map(|value| value.to_string_lossy().to_ascii_lowercase());
        let utf8 = locale.is_some_and(|it| it.contains("utf-8") || it.contains("utf8"));
        Theme { colours: variable("NO_COLOR").is_none(), utf8 }
    }

    fn colour(self, style: Style, colour: Color) -> Style {
        if self.colours { style.fg(colour) } else { style }
    }

    /// The title of a list.
    pub fn title(self, is_selected: bool) -> Style {
        let style = Style::new().add_modifier(Modifier::REVERSED);
        match is_selected {
            true => self.colour(style, Color::Cyan).add_modifier(Modifier::BOLD),
            false => style,
        }
    }

    /// Names and values to be noticed.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Values that are zero, and hints.
    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// As it should be.
    pub fn good(self) -> Style {
        self.colour(Style::new(), Color::Green)
    }

    /// Noteworthy.
    pub fn odd(self) -> Style {
        self.colour(Style::new(), Color::Magenta).add_modifier(Modifier::BOLD)
    }

    /// Failed.
    pub fn bad(self) -> Style {
        self.colour(Style::new(), Color::Red).add_modifier(Modifier::BOLD)
    }

    /// A bar that is full to this share.
    pub fn bar(self, share: f64) -> Style {
        match share {
            ..0.7 => self.good(),
            ..0.9 => self.odd(),
            _ => self.bad(),
        }
    }
}

/// Replaces everything that is not ASCII.
pub fn to_ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if cell.symbol().is_ascii() {
            continue;
        }
        let replacement = match cell.symbol() {
            "█" | "▉" | "▊" | "▋" | "▌" => "|",
            "▍" | "▎" | "▏" => " ",
            "▁" | "▂" => "_",
            "▃" | "▄" => "-",
            "▅" | "▆" | "▇" => "=",
            "→" => ">",
            "↑" | "▲" => "^",
            "↓" | "▼" => "v",
            "µ" => "u",
            "…" => "~",
            "·" => "-",
            _ => "?",
        };
        cell.set_symbol(replacement);
    }
}

/// A bar of `width` cells that is full to a share of 0 to 1, in eighths of a cell.
pub fn bar(share: f64, width: u16) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let full = (share * f64::from(width) * 8.0).round() as usize;
    let mut bar = "█".repeat(full / 8);
    if !full.is_multiple_of(8) {
        bar.push(EIGHTHS[full % 8]);
    }
    bar
}

/// One cell of a graph: a share of 0 to 1 as its height.
pub fn column(share: f64) -> char {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    // What is not zero is visible.
    let eighths = if share > 0.0 { ((share * 8.0).round() as usize).max(1) } else { 0 };
    EIGHTHS[eighths]
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;

    use super::*;

    #[test]
    fn the_environment_says_what_is_shown() {
        let theme = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(it, _)| *it == name);
            Theme::of_environment(|name| find(name).map(|(_, value)| value.into()))
        };
        let both = |colours, utf8| Theme { colours, utf8 };
        assert_eq!(theme(&[]), both(true, false));
        assert_eq!(theme(&[("LANG", "C.UTF-8"), ("NO_COLOR", "")]), both(true, true));
        assert_eq!(theme(&[("LANG", "de_DE.utf8"), ("NO_COLOR", "1")]), both(false, true));
        assert_eq!(theme(&[("LANG", "C.UTF-8"), ("LC_ALL", "C")]), both(true, false));
        assert_eq!(theme(&[("LC_ALL", ""), ("LC_CTYPE", "C.UTF-8")]), both(true, true));
    }

    #[test]
    fn no_colour_means_none() {
        let theme = Theme { colours: false, utf8: true };
        let styles = [theme.title(true), theme.good(), theme.odd(), theme.bad(), theme.bar(1.0)];
        assert!(styles.iter().all(|style| style.fg.is_none() && style.bg.is_none()));
    }

    #[test]
    fn bars_are_in_proportion() {
        let bars = [0.0, 0.5, 1.0, 2.0, f64::NAN, 0.3125].map(|share| bar(share, 4));
        assert_eq!(bars, ["", "██", "████", "████", "", "█▎"]);
        let columns = [0.0, 0.001, 0.5, 1.0, f64::INFINITY].map(column);
        assert_eq!(columns, [' ', '▁', '▄', '█', ' ']);
    }

    #[test]
    fn every_character_is_replaced() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 12, 1));
        buffer.set_string(0, 0, "a→b 1µs▌█é世", Style::new());
        to_ascii(&mut buffer);
        let text: String = buffer.content.iter().map(|cell| cell.symbol()).collect();
        assert_eq!(text, "a>b 1us||?? ");
    }
}
