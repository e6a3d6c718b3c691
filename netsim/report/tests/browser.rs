//! Pages in a real browser: they render, the console stays silent, nothing is wider than the screen, and every section
//! is there and has a size; on a desk and on a phone, light and dark, and with scripts switched off.
//!
//! Run by `netsim/report/browser-check`, which finds the browser. It is spoken to over two pipes, in the DevTools
//! protocol: messages of JSON, each ended by a zero byte. So nothing but the browser itself is needed, and no port is
//! opened. It ends with the test: when its pipes are closed, and at the latest when it is killed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use tern_netsim_report::{batch_page, run_page};

/// Nothing on a page of 2 MB takes a browser so long, even on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);

/// A browser, and one page of it.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: mpsc::Receiver<Value>,
    session: String,
    sent: u64,
    /// What the page said meanwhile.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The protocol is spoken on descriptors 3 and 4; a shell makes them of its standard ones.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let from = listen(out);
        let mut browser =
            Self { child, to, from, session: String::new(), sent: 0, events: Vec::new(), _profile: profile };
        let target = browser.ask("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", &attach);
        session["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Asks, and waits for the answer.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let heard = self.hear(method);
            if heard["id"] == json!(self.sent) {
                assert!(heard["error"].is_null(), "{method}: {}", heard["error"]);
                return heard["result"].clone();
            }
            self.events.push(heard);
        }
    }

    fn hear(&self, what: &str) -> Value {
        self.from.recv_timeout(ANSWER_WITHIN).unwrap_or_else(|_| panic!("{what}: the browser does not answer"))
    }

    /// Waits until the page has told this.
    fn wait_for(&mut self, method: &str) {
        while !self.events.iter().any(|e| e["method"] == json!(method)) {
            let heard = self.hear(method);
            self.events.push(heard);
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true});
        let answer = self.ask("Runtime.evaluate", &asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    fn open(&mut self, page: &Path) {
        self.events.clear();
        self.ask("Page.navigate", &json!({"url": format!("file://{}", page.display())}));
        self.wait_for("Page.loadEventFired");
    }

    /// What no page may say, and what it may not ask for.
    fn complaints(&self) -> Vec<String> {
        let complaint = |event: &Value| match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled" => Some(event.to_string()),
            "Network.requestWillBeSent" => {
                let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
                (!url.starts_with("file://")).then(|| format!("asks for {url}"))
            }
            _ => None,
        };
        self.events.iter().filter_map(complaint).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may be gone already; in any case it is waited for, so that nothing is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(out: ChildStdout) -> mpsc::Receiver<Value> {
    let (tell, from) = mpsc::channel();
    std::thread::spawn(move || {
        let mut out = BufReader::new(out);
        let mut message = Vec::new();
        while out.read_until(0, &mut message).is_ok_and(|length| length > 1) {
            message.pop();
            if tell.send(serde_json::from_slice(&message).unwrap()).is_err() {
                return;
            }
            message.clear();
        }
    });
    from
}

fn pages(directory: &Path) -> Vec<(String, PathBuf, Vec<String>)> {
    let runs = [
        ("run-calm", support::calm()),
        ("run-wrong", support::wrong()),
        ("run-hostile", support::hostile()),
        ("run-huge", support::huge()),
        ("run-empty", Vec::new()),
    ];
    let mut pages: Vec<(&str, String)> =
        runs.into_iter().map(|(name, lines)| (name, run_page(&lines, &support::judged(&lines)))).collect();
    pages.push(("batch", batch_page(&support::batch(6, 40))));
    pages.push(("batch-huge", batch_page(&support::batch(500, 40))));
    pages
        .into_iter()
        .map(|(name, html)| {
            let path = directory.join(format!("{name}.html"));
            fs::write(&path, &html).unwrap();
            let sections = html.split("<section id=\"").skip(1).map(|s| s.split('"').next().unwrap().to_owned());
            (name.to_owned(), path, sections.collect())
        })
        .collect()
}

/// What is too wide for the screen, by tag and class. Nothing in a box that scrolls by itself is.
const TOO_WIDE: &str = "(() => {
  const scrolls = (e) => e && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
  const width = document.documentElement.clientWidth;
  const wide = [...document.body.querySelectorAll('*')].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && (box.right > width + 1 || box.left < -1) && !scrolls(e.parentElement) && !e.closest('svg');
  });
  const all = wide.slice(0, 5).map((e) => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40));
  return document.documentElement.scrollWidth > width ? ['the page itself', ...all] : all;
})()";

#[test]
#[ignore = "needs a browser: run netsim/report/browser-check"]
fn pages_render_on_any_screen() {
    let program = PathBuf::from(std::env::var_os("TERN_BROWSER").expect("TERN_BROWSER names no browser"));
    let directory = tempfile::tempdir().unwrap();
    let shots = std::env::var_os("TERN_SHOTS").map(PathBuf::from);
    let mut browser = Browser::start(&program);
    for (name, path, sections) in pages(directory.path()) {
        for (width, height, mobile) in [(1280, 900, false), (390, 844, true)] {
            let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
            browser.ask("Emulation.setDeviceMetricsOverride", &screen);
            let mut papers = Vec::new();
            for scheme in ["light", "dark"] {
                let what = format!("{name} at {width}, {scheme}");
                let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
                browser.ask("Emulation.setEmulatedMedia", &features);
                browser.open(&path);
                assert_eq!(browser.complaints(), [""; 0], "{what}");
                assert_eq!(browser.evaluate(TOO_WIDE), json!([]), "{what}");
                assert_eq!(browser.evaluate("innerWidth"), json!(width), "{what}");
                for id in sections.iter().map(String::as_str).chain(["verdict"]) {
                    let size = format!(
                        "(b => b.width > 100 && b.height > 30)(document.getElementById('{id}').getBoundingClientRect())"
                    );
                    assert_eq!(browser.evaluate(&size), json!(true), "{what}: section {id}");
                }
                papers.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
                let button = browser.evaluate(
                    "[...document.querySelectorAll('[data-copy]')].every(b => getComputedStyle(b).display === 'block')",
                );
                assert_eq!(button, json!(true), "{what}: the script did not run");
                if let Some(shots) = &shots {
                    shoot(&mut browser, &shots.join(format!("{name}-{width}-{scheme}.png")));
                }
            }
            assert_ne!(papers[0], papers[1], "{name}: light and dark look the same");
        }
    }
    a_command_can_be_copied(&mut browser, directory.path());
    without_scripts_it_can_be_read(&mut browser, directory.path());
}

/// The whole page, as far as a picture may be high.
fn shoot(browser: &mut Browser, path: &Path) {
    let size = browser.ask("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
    let height = size["height"].as_f64().unwrap().min(6000.0);
    let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1});
    let asked = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
    let shot = browser.ask("Page.captureScreenshot", &asked);
    let bytes = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn a_command_can_be_copied(browser: &mut Browser, directory: &Path) {
    browser.open(&directory.join("run-calm.html"));
    let said = browser.evaluate(
        "document.querySelector('[data-copy]').click(); getSelection().toString() || 'left to the clipboard'",
    );
    let said = said.as_str().unwrap();
    assert!(said.starts_with("tern-netsim run") || said == "left to the clipboard", "{said}");
    assert_eq!(browser.complaints(), [""; 0]);
}

fn without_scripts_it_can_be_read(browser: &mut Browser, directory: &Path) {
    browser.ask("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
    browser.open(&directory.join("run-wrong.html"));
    let document = browser.ask("DOM.getDocument", &json!({"depth": 1}));
    let asked = |selector: &str| json!({"nodeId": document["root"]["nodeId"], "selector": selector});
    let verdict = browser.ask("DOM.querySelector", &asked(".verdict"))["nodeId"].clone();
    let lanes = browser.ask("DOM.querySelector", &asked("#lanes svg"))["nodeId"].clone();
    for node in [verdict, lanes] {
        let model = browser.ask("DOM.getBoxModel", &json!({"nodeId": node}));
        assert!(model["model"]["height"].as_u64().unwrap() > 30, "{model}");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}
