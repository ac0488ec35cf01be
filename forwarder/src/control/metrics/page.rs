//! The page: one file without anything from elsewhere. It reads `/api/v1/overview` and shows it.
//!
//! Its Content-Security-Policy allows its own script and style only, by their hashes, and connections to this server only.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

/// The page.
pub const HTML: &str = include_str!("page.html");

/// Its policy.
pub static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |element| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside(element))));
    let text = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash("script"),
        hash("style")
    );
    // Hashes are base64: no character is one that a header may not have.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

/// What is inside of the only element of a name.
fn inside(element: &str) -> &'static str {
    let inner = HTML.split_once(&format!("<{element}>")).map(|(_, rest)| rest);
    let inner = inner.and_then(|rest| rest.split_once(&format!("</{element}>")));
    inner.map_or("", |(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_only_script_and_style() {
        for element in ["script", "style"] {
            assert_eq!(HTML.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(inside(element).len() > 1000, "{element}");
        }
        let policy = POLICY.to_str().expect("text");
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
    }

    #[test]
    fn nothing_is_from_elsewhere_and_no_text_becomes_html() {
        for forbidden in [
            "https:",
            "src=",
            "href=",
            "@import",
            "url(",
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            " style=",
            " on",
        ] {
            let found = HTML.lines().find(|line| line.contains(forbidden));
            // A comment or a text may have the word "on".
            let found = found.filter(|line| forbidden != " on" || line.contains('='));
            assert_eq!(found, None, "{forbidden}");
        }
        // The only address is the name of the SVG namespace.
        assert_eq!(HTML.matches("http:").count(), 1);
    }
}
