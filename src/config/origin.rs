//! Origins of web pages.

use super::value::{Raw, Value, wrong};

/// Whose pages may connect from a browser: scheme, host and port, as browsers write it in `Origin` (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(pub String);

impl Value for WebOrigin {
    const SHAPE: &'static str = "an origin of web pages, such as \"https://example.org\" or \"http://localhost:3000\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let Raw::Text(text) = raw else { return Err(wrong::<Self>(raw)) };
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        // Compared byte by byte with what browsers send, which is in lower case and has no path.
        let is_host = |host: &str| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
            !host.is_empty() && host.bytes().all(allowed)
        };
        if host.is_some_and(is_host) {
            Ok(Self(text.clone()))
        } else {
            Err(format!("is {text:?}, expected {}", Self::SHAPE))
        }
    }

    fn show(&self) -> Option<String> {
        self.0.show()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_browser_would_send_is_refused() {
        for good in ["https://example.org", "http://localhost:3000", "https://[2001:db8::1]:8443"] {
            assert_eq!(WebOrigin::from_text(good).unwrap().0, good);
        }
        for bad in ["example.org", "https://", "https://example.org/", "https://Example.org", "*", "ftp://a", ""] {
            assert!(WebOrigin::from_text(bad).unwrap_err().contains("an origin of web pages"), "{bad}");
        }
    }
}
