//! The HTML report in a real browser, wide and narrow, light and dark: every plot is drawn,
//! nothing is fetched, nothing runs over the edge. Needs Chromium, so it has a feature of its own:
//! `just browser` installs what is missing and runs it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// Chromium, spoken to in its `DevTools` protocol through a pipe.
struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    next: u64,
    events: Vec<Value>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    fn start(profile: &Path) -> Self {
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        // The browser reads from descriptor 3 and writes to 4.
        let script = "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
                      --user-data-dir=\"$1\" --remote-debugging-pipe 3<&0 4>&1 >/dev/null 2>&1";
        let mut process = Command::new("sh")
            .args(["-c", script, &program, profile.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (
            process.stdin.take().unwrap(),
            process.stdout.take().unwrap(),
        );
        Browser {
            process,
            to,
            from: BufReader::new(from),
            next: 0,
            events: Vec::new(),
        }
    }

    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(
            bytes.pop(),
            Some(0),
            "is Chromium installed? `just browser` does it"
        );
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The result of a command; events that come meanwhile are kept.
    fn ask(&mut self, session: &str, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !session.is_empty() {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let answer = self.read();
            if answer["id"] == self.next {
                assert_eq!(answer["error"], Value::Null, "{method}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    fn wait_for(&mut self, method: &str) {
        while !self.events.iter().any(|e| e["method"] == method) {
            let event = self.read();
            self.events.push(event);
        }
    }
}

/// How a page is looked at.
#[derive(Clone, Copy)]
struct View {
    name: &'static str,
    width: u32,
    dark: bool,
}

const VIEWS: [View; 4] = [
    View {
        name: "wide-light",
        width: 1280,
        dark: false,
    },
    View {
        name: "wide-dark",
        width: 1280,
        dark: true,
    },
    View {
        name: "phone-light",
        width: 390,
        dark: false,
    },
    View {
        name: "phone-dark",
        width: 390,
        dark: true,
    },
];

/// What the page says of itself: its plots with their sizes and the marks in them that take up
/// room, its width, and its colours.
const LOOK: &str = "JSON.stringify({
  plots: [...document.querySelectorAll('svg')].map(svg => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll('rect,circle,polyline')].filter(mark => {
      const b = mark.getBoundingClientRect();
      const style = getComputedStyle(mark);
      const paint = mark.tagName == 'polyline' ? style.stroke : style.fill;
      return b.width > 0 && b.height > 0 && paint != 'none' && b.left >= box.left - 1
        && b.right <= box.right + 1 && b.bottom <= box.bottom + 1;
    });
    return {id: svg.id, width: box.width, height: box.height, marks: marks.length};
  }),
  width: document.documentElement.scrollWidth,
  paper: getComputedStyle(document.body).backgroundColor,
  scripts: document.scripts.length,
})";

fn look(browser: &mut Browser, page: &Path, view: View, shot: &Path) -> Value {
    browser.events.clear();
    let target = browser.ask("", "Target.createTarget", &json!({"url": "about:blank"}));
    let attach = json!({"targetId": target["targetId"], "flatten": true});
    let session = browser.ask("", "Target.attachToTarget", &attach);
    let session = session["sessionId"].as_str().unwrap().to_owned();
    let scheme = if view.dark { "dark" } else { "light" };
    let url = format!("file://{}", page.display());
    for (method, params) in [
        ("Network.enable", json!({})),
        ("Page.enable", json!({})),
        (
            "Emulation.setDeviceMetricsOverride",
            json!({"width": view.width, "height": 900, "deviceScaleFactor": 1,
                   "mobile": view.width < 600}),
        ),
        (
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        ),
        ("Page.navigate", json!({"url": url})),
    ] {
        browser.ask(&session, method, &params);
    }
    browser.wait_for("Page.loadEventFired");
    let evaluate = json!({"expression": LOOK, "returnByValue": true});
    let found = browser.ask(&session, "Runtime.evaluate", &evaluate);
    let found = found["result"]["value"].as_str().unwrap();
    let picture = browser.ask(
        &session,
        "Page.captureScreenshot",
        &json!({"captureBeyondViewport": true}),
    );
    fs_err::write(shot, base64(picture["data"].as_str().unwrap())).unwrap();
    let requests = browser
        .events
        .iter()
        .filter(|e| e["method"] == "Network.requestWillBeSent");
    let urls: Vec<&str> = requests
        .map(|e| e["params"]["request"]["url"].as_str().unwrap())
        .collect();
    assert_eq!(urls, [url], "nothing but the page itself is fetched");
    browser.ask(
        "",
        "Target.closeTarget",
        &json!({"targetId": target["targetId"]}),
    );
    serde_json::from_str(found).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits = text.bytes().filter(|&c| c != b'=').map(value);
    let bits: Vec<u32> = bits.map(u32::from).collect();
    let whole = |chunk: &[u32]| {
        let joined = chunk.iter().fold(0, |all, six| all << 6 | six) << (6 * (4 - chunk.len()));
        joined.to_be_bytes()[1..chunk.len()].to_vec()
    };
    bits.chunks(4).flat_map(whole).collect()
}

/// Converts the fixture model and returns its page.
fn page(dir: &Path, args: &[&str]) -> PathBuf {
    let (model, text) = (
        neuroconv_fixtures::tiny_model(),
        neuroconv_fixtures::tiny_text(),
    );
    let (what, rest) = args.split_first().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_neuroconv"))
        .args([
            what,
            model.to_str().unwrap(),
            "--text",
            text.to_str().unwrap(),
        ])
        .args([
            "--ctx",
            "128",
            "--max-eval-tokens",
            "2560",
            "--report",
            "html",
        ])
        .args([
            "--yardstick",
            "q8",
            "--report-dir",
            what,
            "-o",
            &format!("{what}-out"),
        ])
        .args(rest)
        .current_dir(dir)
        .output()
        .unwrap();
    let page = dir.join(what).join("report.html");
    assert!(
        page.is_file(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    page
}

#[test]
fn every_plot_is_drawn_and_nothing_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut browser = Browser::start(&dir.path().join("profile"));
    let common = [
        "plot-size",
        "plot-layers",
        "plot-tensors",
        "plot-kld",
        "plot-confidence",
        "plot-position",
    ];
    let latent = [
        "plot-size",
        "plot-layers",
        "plot-tensors",
        "plot-spectra",
        "plot-latent-loss",
        "plot-kld",
        "plot-confidence",
        "plot-position",
    ];
    let mla = ["mla", "--kv-budget", "0.75"];
    for (args, plots) in [(&["int4"][..], &common[..]), (&mla, &latent)] {
        let page = page(dir.path(), args);
        for view in VIEWS {
            let shot = shots.join(format!("report-{}-{}.png", args[0], view.name));
            let found = look(&mut browser, &page, view, &shot);
            let name = format!("{} {}", args[0], view.name);
            let ids: Vec<&str> = found["plots"]
                .as_array()
                .unwrap()
                .iter()
                .map(|plot| plot["id"].as_str().unwrap())
                .collect();
            assert_eq!(ids, plots, "{name}");
            for plot in found["plots"].as_array().unwrap() {
                let number = |key: &str| plot[key].as_f64().unwrap();
                assert!(
                    number("width") > 300.0 && number("height") > 40.0,
                    "{name}: {plot}"
                );
                assert!(number("marks") >= 2.0, "{name}: {plot}");
            }
            assert!(
                found["width"].as_f64().unwrap() <= f64::from(view.width),
                "{name}: {found}"
            );
            let light = found["paper"] == "rgb(255, 255, 255)";
            assert_eq!(light, !view.dark, "{name}: {found}");
            assert_eq!(found["scripts"], 0);
        }
    }
}
