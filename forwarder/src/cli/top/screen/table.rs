//! Lists on the screen: columns that give way, rows that are sorted, filtered and scrolled.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Span;

use super::theme::{self, Theme};
use crate::control::process::terminal::printable;

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    /// Cells; those of a flexible column are its least.
    pub width: u16,
    /// Takes what room is left.
    pub is_flexible: bool,
    pub is_right: bool,
    /// Where there is too little room, columns with the highest number are left out. 0: it stays.
    pub rank: u8,
}

impl Column {
    /// Numbers.
    pub fn number(title: &'static str, width: u16, rank: u8) -> Column {
        Column { title, width, is_flexible: false, is_right: true, rank }
    }

    /// Text.
    pub fn text(title: &'static str, width: u16, rank: u8) -> Column {
        Column { title, width, is_flexible: false, is_right: false, rank }
    }

    /// Text that takes the rest of the line.
    pub fn rest(title: &'static str, width: u16, rank: u8) -> Column {
        Column { title, width, is_flexible: true, is_right: false, rank }
    }
}

/// What a cell shows.
#[derive(Debug, Clone)]
pub enum Content {
    Text(String),
    /// Full to a share of 0 to 1, and a text behind it.
    Bar(f64, String),
}

/// By what rows are sorted.
#[derive(Debug, Clone)]
pub enum Key {
    Number(f64),
    Text(String),
}

/// A cell.
#[derive(Debug, Clone)]
pub struct Cell {
    pub content: Content,
    pub style: Style,
    pub key: Key,
}

impl Cell {
    /// Text. Control characters are escaped.
    pub fn text(text: &str, style: Style) -> Cell {
        let text = printable(text).into_owned();
        Cell { content: Content::Text(text.clone()), style, key: Key::Text(text) }
    }

    /// A number, as text.
    pub fn number(value: f64, text: String, style: Style) -> Cell {
        Cell { content: Content::Text(text), style, key: Key::Number(value) }
    }

    /// A bar, full to a share of 0 to 1.
    pub fn bar(share: f64, text: String, style: Style) -> Cell {
        Cell { content: Content::Bar(share, text), style, key: Key::Number(share) }
    }
}

/// By which column, and in which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    pub column: usize,
    pub is_ascending: bool,
}

/// A list.
#[derive(Debug, Clone)]
pub struct Table {
    /// In place of the title of the first column.
    pub title: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Cell>>,
    /// What is shown without rows.
    pub empty: String,
}

/// How a list is shown.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub is_selected: bool,
    pub sort: Option<Sort>,
    /// First row.
    pub offset: usize,
}

/// Cells between two columns.
const GAP: u16 = 1;
/// How narrow the first column becomes rather than to leave out the one that matters most beside it.
const FIRST_WIDTH_MIN: u16 = 6;

impl Table {
    /// Keeps rows with a text in one of their cells, in any case.
    pub fn filter(&mut self, text: &str) {
        let text = text.to_lowercase();
        if text.is_empty() {
            return;
        }
        let has = |cell: &Cell| match &cell.key {
            Key::Text(it) => it.to_lowercase().contains(&text),
            Key::Number(_) => false,
        };
        self.rows.retain(|row| row.iter().any(has));
        self.empty = "nothing matches the filter".to_owned();
    }

    /// Sorts the rows. Those that are equal keep their order.
    pub fn sort(&mut self, sort: Sort) {
        let Sort { column, is_ascending } = sort;
        self.rows.sort_by(|a, b| {
            let order = match (a.get(column).map(|it| &it.key), b.get(column).map(|it| &it.key)) {
                (Some(Key::Number(a)), Some(Key::Number(b))) => a.total_cmp(b),
                (Some(Key::Text(a)), Some(Key::Text(b))) => a.cmp(b),
                _ => std::cmp::Ordering::Equal,
            };
            if is_ascending { order } else { order.reverse() }
        });
    }

    /// Lines that it would fill, with its title.
    pub fn height(&self) -> u16 {
        u16::try_from(self.rows.len().max(1)).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// Draws the title in the first line, and rows from the offset on below it. Does nothing in an empty area.
    pub fn draw(&self, buffer: &mut Buffer, area: Rect, view: View, theme: Theme) {
        if area.is_empty() {
            return;
        }
        let columns = self.layout(area.width, view.sort.map(|sort| sort.column));
        self.draw_title(buffer, area, &columns, view, theme);
        let rows = area.y + 1..area.bottom();
        if self.rows.is_empty() && !rows.is_empty() {
            let width = usize::from(area.width);
            buffer.set_stringn(area.x, rows.start, &self.empty, width, theme.faint());
        }
        for (y, row) in rows.zip(self.rows.iter().skip(view.offset)) {
            for (at, x, width) in &columns {
                if let (Some(cell), Some(column)) = (row.get(*at), self.columns.get(*at)) {
                    draw_cell(buffer, (area.x + x, y, *width), cell, column.is_right);
                }
            }
        }
    }

    fn draw_title(
        &self,
        buffer: &mut Buffer,
        area: Rect,
        columns: &[(usize, u16, u16)],
        view: View,
        theme: Theme,
    ) {
        let style = theme.title(view.is_selected);
        let line = Rect { height: 1, ..area };
        buffer.set_style(line, style);
        for (at, x, width) in columns {
            let Some(column) = self.columns.get(*at) else { continue };
            let mut title = if *at == 0 { self.title.clone() } else { column.title.to_owned() };
            if let Some(sort) = view.sort.filter(|sort| sort.column == *at) {
                title.push(if sort.is_ascending { '▲' } else { '▼' });
            }
            put(buffer, (area.x + x, area.y, *width), &title, column.is_right, style);
        }
        // How much is above and below.
        let shown = usize::from(area.height.saturating_sub(1));
        if view.offset > 0 || self.rows.len() > view.offset + shown {
            let last = (view.offset + shown).min(self.rows.len());
            let text = format!(" {}-{last}/{}", (view.offset + 1).min(last), self.rows.len());
            let (x, width) = columns.first().map_or((0, 0), |(_, x, width)| (*x, *width));
            let room = width.saturating_sub(text_width(&self.title).min(width));
            let needed = text_width(&text);
            if needed <= room {
                let x = area.x + x + width - needed;
                buffer.set_stringn(x, area.y, text, usize::from(needed), style);
            }
        }
    }

    /// The columns that fit, and the one that is sorted by in any case: number, first cell, width.
    fn layout(&self, width: u16, sorted: Option<usize>) -> Vec<(usize, u16, u16)> {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let needed = |shown: &[usize]| -> u32 {
            shown.iter().map(|at| u32::from(self.columns[*at].width + GAP)).sum::<u32>()
        };
        let rank = |at: usize| if sorted == Some(at) { 0 } else { self.columns[at].rank };
        let excess =
            |shown: &[usize]| needed(shown).saturating_sub(u32::from(GAP) + u32::from(width));
        // How much narrower the first column is.
        let mut narrower = 0;
        while excess(&shown) > narrower {
            let least = shown.iter().enumerate().rev().max_by_key(|(_, at)| rank(**at));
            let Some((index, rank)) = least.map(|(index, at)| (index, rank(*at))) else { break };
            let spare = self.columns[0].width.saturating_sub(FIRST_WIDTH_MIN);
            match rank {
                0 | 1 if excess(&shown) <= spare.into() => narrower = excess(&shown),
                // The rest is cut off at the right.
                0 => break,
                _ => drop(shown.remove(index)),
            }
        }
        let used = needed(&shown).saturating_sub(GAP.into());
        let spare = u32::from(width).saturating_sub(used);
        let flexible = shown.iter().filter(|at| self.columns[**at].is_flexible).count() as u32;
        let (mut x, mut laid_out) = (0u16, Vec::new());
        let mut spare_left = spare;
        for at in shown {
            let column = &self.columns[at];
            let mut its = column.width;
            if at == 0 {
                its = its.saturating_sub(narrower as u16);
            }
            if column.is_flexible {
                let more = spare.div_ceil(flexible.max(1)).min(spare_left);
                spare_left -= more;
                its = its.saturating_add(more as u16);
            }
            let its = its.min(width.saturating_sub(x));
            if its > 0 {
                laid_out.push((at, x, its));
            }
            x = x.saturating_add(its).saturating_add(GAP);
        }
        laid_out
    }
}

/// Cells that a text takes.
pub fn text_width(text: &str) -> u16 {
    Span::raw(text).width().try_into().unwrap_or(u16::MAX)
}

fn draw_cell(buffer: &mut Buffer, place: (u16, u16, u16), cell: &Cell, is_right: bool) {
    match &cell.content {
        Content::Text(text) => put(buffer, place, text, is_right, cell.style),
        Content::Bar(share, text) => {
            let (x, y, width) = place;
            let behind = text_width(text).min(width);
            // The bar's end is visible where it is not full.
            let bar_width = width.saturating_sub(behind).saturating_sub(u16::from(behind > 0));
            if bar_width > 2 {
                buffer.set_stringn(x, y, "[", 1, Style::new());
                let inside = bar_width - 2;
                let bar = theme::bar(*share, inside);
                buffer.set_stringn(x + 1, y, bar, usize::from(inside), cell.style);
                buffer.set_stringn(x + bar_width - 1, y, "]", 1, Style::new());
            }
            put(buffer, (x + width - behind, y, behind), text, true, Style::new());
        }
    }
}

/// Writes a text; if it does not fit, its end is cut off and marked.
pub fn put(
    buffer: &mut Buffer,
    (x, y, width): (u16, u16, u16),
    text: &str,
    is_right: bool,
    style: Style,
) {
    let needed = text_width(text);
    if needed <= width {
        let x = if is_right { x + width - needed } else { x };
        buffer.set_stringn(x, y, text, usize::from(needed), style);
    } else if width > 0 {
        buffer.set_stringn(x, y, text, usize::from(width - 1), style);
        buffer.set_stringn(x + width - 1, y, "…", 1, style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEME: Theme = Theme { colours: true, utf8: true };

    fn table() -> Table {
        let row = |name: &str, value: f64| {
            vec![
                Cell::text(name, Style::new()),
                Cell::number(value, format!("{value}"), Style::new()),
                Cell::bar(value / 10.0, format!("{value}"), Style::new()),
            ]
        };
        Table {
            title: "Names".into(),
            columns: vec![
                Column::text("", 6, 0),
                Column::number("value", 5, 1),
                Column::rest("bar", 6, 2),
            ],
            rows: vec![row("b\x1b[1m", 5.0), row("a", 10.0), row("c", 2.0)],
            empty: "none".into(),
        }
    }

    fn drawn(table: &Table, width: u16, height: u16, offset: usize) -> Vec<String> {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        let sort = Some(Sort { column: 1, is_ascending: false });
        table.draw(&mut buffer, area, View { is_selected: true, sort, offset }, THEME);
        let lines = buffer.content.chunks(usize::from(width.max(1)));
        lines.map(|line| line.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    #[test]
    fn columns_give_way_and_the_last_is_cut_off() {
        let mut table = table();
        assert_eq!(
            drawn(&table, 21, 4, 0),
            [
                "Names  valu… bar     ",
                "b\\x1b…     5 [██  ] 5",
                "a         10 [███] 10",
                "c          2 [▊   ] 2",
            ]
        );
        assert_eq!(drawn(&table, 12, 2, 1), ["Names  valu…", "a         10"]);
        table.columns[1].rank = 9;
        assert_eq!(drawn(&table, 12, 2, 1), ["Names  valu…", "a         10"], "it is sorted by");
        table.columns[0].width = 15;
        assert_eq!(drawn(&table, 13, 2, 1), ["Names   valu…", "a          10"]);
        table.columns[0].width = 6;
        assert_eq!(drawn(&table, 4, 2, 1), ["Nam…", "a   "]);
        assert_eq!(drawn(&table, 1, 1, 0), ["…"]);
        drawn(&table, 0, 5, 0);
        drawn(&table, 5, 0, 0);
    }

    #[test]
    fn rows_are_sorted_by_number_or_name_and_filtered() {
        let mut table = table();
        let names = |table: &Table| -> Vec<String> {
            let name = |row: &Vec<Cell>| match &row[0].content {
                Content::Text(text) => text.chars().take(1).collect(),
                Content::Bar(..) => String::new(),
            };
            table.rows.iter().map(name).collect()
        };
        table.sort(Sort { column: 1, is_ascending: false });
        assert_eq!(names(&table), ["a", "b", "c"]);
        table.sort(Sort { column: 0, is_ascending: false });
        assert_eq!(names(&table), ["c", "b", "a"]);
        table.sort(Sort { column: 9, is_ascending: true });
        assert_eq!(names(&table), ["c", "b", "a"]);
        table.filter("B");
        assert_eq!(names(&table), ["b"]);
        table.filter("x");
        assert_eq!((table.rows.len(), table.height()), (1, 2), "the escape is text");
        table.filter("y");
        assert_eq!(drawn(&table, 30, 2, 0)[1].trim_end(), "nothing matches the filter");
    }

    #[test]
    fn the_title_shows_what_is_above_and_below() {
        let mut table = table();
        table.columns.truncate(1);
        table.columns[0].is_flexible = true;
        assert_eq!(drawn(&table, 20, 2, 1)[0], "Names          2-2/3");
        assert_eq!(drawn(&table, 20, 4, 0)[0].trim_end(), "Names");
        assert_eq!(drawn(&table, 20, 1, 7)[0].trim_end(), "Names          3-3/3");
    }
}
