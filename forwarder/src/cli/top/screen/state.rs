//! What the user has chosen, and the keys by which.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::table::Sort;

/// The lists, from the top to the bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Workers,
    Ports,
    Latency,
    Reasons,
    Flows,
}

impl List {
    pub const ALL: [List; 5] =
        [List::Workers, List::Ports, List::Latency, List::Reasons, List::Flows];
}

/// Something for each list.
pub type PerList<T> = [T; List::ALL.len()];

/// Intervals that are chosen with keys, in milliseconds.
const INTERVALS_MS: [u32; 8] = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000];
/// Longest text to filter by, in characters.
const FILTER_MAX: usize = 64;

/// What the user has chosen.
#[derive(Debug, Clone)]
pub struct State {
    pub selected: List,
    /// Only the selected list is shown.
    pub is_alone: bool,
    pub has_help: bool,
    pub is_paused: bool,
    /// Octets in place of bits.
    pub octets: bool,
    pub has_flows: bool,
    /// Latency since the start, in place of that of the interval.
    pub latency_total: bool,
    pub interval_ms: u32,
    pub filter: String,
    /// Keys are letters of the filter.
    pub is_editing: bool,
    pub sorts: PerList<Option<Sort>>,
    pub offsets: PerList<usize>,
    /// Of the lists as drawn last: number of columns, rows, rows that are visible.
    pub drawn: PerList<Drawn>,
}

/// A list as drawn last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drawn {
    pub columns: usize,
    pub rows: usize,
    /// Rows that fit; `None`: the list is not on the screen.
    pub page: Option<usize>,
}

/// What a key asks of the program, beside what it changes in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Quit,
    /// Draw everything again: something else has written to the terminal.
    Redraw,
    /// Stop, as the shell's ^Z.
    Suspend,
}

impl State {
    /// At the start.
    pub fn new(interval_ms: u32) -> State {
        State {
            selected: List::Ports,
            is_alone: false,
            has_help: false,
            is_paused: false,
            octets: false,
            has_flows: true,
            latency_total: false,
            interval_ms,
            filter: String::new(),
            is_editing: false,
            sorts: Default::default(),
            offsets: Default::default(),
            drawn: Default::default(),
        }
    }

    /// Handles a key.
    pub fn key(&mut self, key: KeyEvent) -> Effect {
        if key.kind == KeyEventKind::Release {
            return Effect::None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Effect::Quit,
                KeyCode::Char('l') => Effect::Redraw,
                KeyCode::Char('z') => Effect::Suspend,
                _ => Effect::None,
            };
        }
        if self.is_editing {
            self.edit(key.code);
            return Effect::None;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::F(10) => return Effect::Quit,
            KeyCode::Esc => self.leave(),
            // As in htop, each key leaves the help.
            _ if self.has_help => self.has_help = false,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.has_help = true,
            code => self.command(code),
        }
        Effect::None
    }

    fn command(&mut self, code: KeyCode) {
        match code {
            KeyCode::Tab => self.select(1),
            KeyCode::BackTab => self.select(-1),
            KeyCode::Enter | KeyCode::Char('z') => self.is_alone = !self.is_alone,
            KeyCode::Char('1'..='5') => self.select_by_number(code),
            KeyCode::Char('p' | 'Z') => self.is_paused = !self.is_paused,
            KeyCode::Char('b' | 'B') => self.octets = !self.octets,
            KeyCode::Char('f') => self.has_flows = !self.has_flows,
            KeyCode::Char('l') => self.latency_total = !self.latency_total,
            KeyCode::Char('+' | '=') => self.change_interval(true),
            KeyCode::Char('-') => self.change_interval(false),
            KeyCode::Char('/' | '\\') | KeyCode::F(3 | 4) => self.is_editing = true,
            KeyCode::Char('>' | '.' | 's') | KeyCode::F(6) => self.sort_by(1),
            KeyCode::Char('<' | ',') => self.sort_by(-1),
            KeyCode::Char('I' | 'r') => self.reverse(),
            KeyCode::Up | KeyCode::Char('k') => self.scroll(-1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll(1),
            KeyCode::PageUp => self.scroll(-self.page()),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll(self.page()),
            KeyCode::Home | KeyCode::Char('g') => self.scroll(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.scroll(isize::MAX),
            _ => {}
        }
    }

    fn edit(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Enter => self.is_editing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_editing = false;
            }
            _ => {}
        }
        self.offsets = Default::default();
    }

    /// Leaves the help, the single list, then the filter.
    fn leave(&mut self) {
        if self.has_help {
            self.has_help = false;
        } else if self.is_alone {
            self.is_alone = false;
        } else {
            self.filter.clear();
        }
    }

    fn is_selectable(&self, list: List) -> bool {
        list != List::Flows || self.has_flows
    }

    /// The next list that is on the screen, or that can be shown alone.
    fn select(&mut self, by: isize) {
        let count = List::ALL.len() as isize;
        let of = |step: isize| {
            let at = (self.selected as isize + by * step).rem_euclid(count);
            List::ALL[at as usize]
        };
        let is_there = |list: &List| {
            let is_drawn = self.is_alone || self.drawn[*list as usize].page.is_some();
            is_drawn && self.is_selectable(*list)
        };
        self.selected = (1..=count).map(of).find(is_there).unwrap_or(self.selected);
    }

    fn select_by_number(&mut self, code: KeyCode) {
        let KeyCode::Char(digit) = code else { return };
        let at = (digit as usize).wrapping_sub('1' as usize);
        let Some(list) = List::ALL.get(at).copied() else { return };
        self.has_flows |= list == List::Flows;
        self.selected = list;
        // Otherwise the key would show nothing.
        self.is_alone |= self.drawn[at].page.is_none();
    }

    fn change_interval(&mut self, is_longer: bool) {
        let next = match is_longer {
            true => INTERVALS_MS.iter().find(|it| **it > self.interval_ms),
            false => INTERVALS_MS.iter().rev().find(|it| **it < self.interval_ms),
        };
        self.interval_ms = next.copied().unwrap_or(self.interval_ms);
    }

    /// From the list's own order by each column and back to it.
    fn sort_by(&mut self, by: isize) {
        let at = self.selected as usize;
        let columns = self.drawn[at].columns as isize;
        let now = self.sorts[at].map_or(-1, |sort| sort.column as isize);
        let next = (now + 1 + by).rem_euclid(columns + 1) - 1;
        self.sorts[at] =
            usize::try_from(next).ok().map(|column| Sort { column, is_ascending: column == 0 });
    }

    fn reverse(&mut self) {
        if let Some(sort) = &mut self.sorts[self.selected as usize] {
            sort.is_ascending = !sort.is_ascending;
        }
    }

    fn page(&self) -> isize {
        self.drawn[self.selected as usize].page.unwrap_or(1).max(1) as isize
    }

    fn scroll(&mut self, by: isize) {
        let at = self.selected as usize;
        self.offsets[at] = self.offsets[at].saturating_add_signed(by);
        self.limit_offset(self.selected);
    }

    /// After the number of rows has changed: the last page is full.
    pub fn limit_offset(&mut self, list: List) {
        let at = list as usize;
        let Drawn { rows, page, .. } = self.drawn[at];
        self.offsets[at] = self.offsets[at].min(rows.saturating_sub(page.unwrap_or(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn() -> State {
        let mut state = State::new(1000);
        state.drawn = [Drawn { columns: 3, rows: 50, page: Some(10) }; 5];
        state
    }

    fn press(state: &mut State, code: KeyCode) -> Effect {
        state.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn letters(state: &mut State, keys: &str) {
        for key in keys.chars() {
            assert_eq!(press(state, KeyCode::Char(key)), Effect::None, "{key}");
        }
    }

    #[test]
    fn keys_that_end_or_stop() {
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        let mut state = drawn();
        assert_eq!(press(&mut state, KeyCode::Char('q')), Effect::Quit);
        assert_eq!(press(&mut state, KeyCode::F(10)), Effect::Quit);
        letters(&mut state, "/q");
        assert_eq!((state.filter.as_str(), state.is_editing), ("q", true));
        for (key, effect) in [('c', Effect::Quit), ('z', Effect::Suspend), ('l', Effect::Redraw)] {
            assert_eq!(state.key(control(key)), effect);
        }
        press(&mut state, KeyCode::Esc);
        assert_eq!((state.filter.as_str(), state.is_editing), ("", false));
        letters(&mut state, "/ab");
        press(&mut state, KeyCode::Backspace);
        press(&mut state, KeyCode::Enter);
        assert_eq!((state.filter.as_str(), state.is_editing), ("a", false));
        letters(&mut state, "?");
        press(&mut state, KeyCode::Esc);
        assert_eq!((state.filter.as_str(), state.has_help), ("a", false));
        press(&mut state, KeyCode::Esc);
        assert_eq!(state.filter, "");
    }

    #[test]
    fn a_filter_has_a_greatest_length() {
        let mut state = drawn();
        letters(&mut state, &format!("/{}", "x".repeat(500)));
        assert_eq!(state.filter.len(), FILTER_MAX);
    }

    #[test]
    fn lists_are_selected_if_they_are_on_the_screen() {
        let mut state = drawn();
        press(&mut state, KeyCode::Tab);
        assert_eq!(state.selected, List::Latency);
        press(&mut state, KeyCode::BackTab);
        press(&mut state, KeyCode::BackTab);
        assert_eq!(state.selected, List::Workers);
        state.drawn[List::Flows as usize].page = None;
        press(&mut state, KeyCode::BackTab);
        assert_eq!(state.selected, List::Reasons);
        letters(&mut state, "5");
        assert_eq!((state.selected, state.is_alone), (List::Flows, true));
        letters(&mut state, "z");
        assert!(!state.is_alone);
        state.drawn = Default::default();
        press(&mut state, KeyCode::Tab);
        assert_eq!(state.selected, List::Flows, "nothing else is there");
        letters(&mut state, "2");
        assert_eq!((state.selected, state.is_alone), (List::Ports, true));
    }

    #[test]
    fn lists_are_scrolled_to_their_ends() {
        let mut state = drawn();
        let mut offset = |code| {
            press(&mut state, code);
            state.offsets[List::Ports as usize]
        };
        assert_eq!(offset(KeyCode::Up), 0);
        assert_eq!(offset(KeyCode::Down), 1);
        assert_eq!(offset(KeyCode::PageDown), 11);
        assert_eq!(offset(KeyCode::End), 40);
        assert_eq!(offset(KeyCode::PageDown), 40);
        assert_eq!(offset(KeyCode::PageUp), 30);
        assert_eq!(offset(KeyCode::Home), 0);
        state.offsets[List::Ports as usize] = 40;
        state.drawn[List::Ports as usize].rows = 3;
        state.limit_offset(List::Ports);
        assert_eq!(state.offsets, [0; 5]);
    }

    #[test]
    fn sorting_goes_through_all_columns_and_back() {
        let mut state = drawn();
        let at = List::Ports as usize;
        let mut seen = Vec::new();
        for _ in 0..4 {
            letters(&mut state, ">");
            seen.push(state.sorts[at].map(|sort| (sort.column, sort.is_ascending)));
        }
        assert_eq!(seen, [Some((0, true)), Some((1, false)), Some((2, false)), None]);
        letters(&mut state, "<I");
        assert_eq!(state.sorts[at], Some(Sort { column: 2, is_ascending: true }));
    }

    #[test]
    fn intervals_stay_within_limits() {
        let mut state = State::new(1500);
        letters(&mut state, "-");
        assert_eq!(state.interval_ms, 1000);
        letters(&mut state, "++");
        assert_eq!(state.interval_ms, 5000);
        letters(&mut state, "++++");
        assert_eq!(state.interval_ms, 30_000);
        letters(&mut state, &"-".repeat(20));
        assert_eq!(state.interval_ms, 100);
    }

    #[test]
    fn letters_change_what_is_shown() {
        let mut state = drawn();
        letters(&mut state, "pbfl");
        assert!(state.is_paused && state.octets && !state.has_flows && state.latency_total);
        letters(&mut state, "5");
        assert!(state.has_flows);
    }
}
