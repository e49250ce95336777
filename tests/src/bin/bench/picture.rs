//! Cost against the number of tenants, as a picture (SVG).

use std::fmt::Write;

use crate::messages::Traffic;
use crate::report::Report;
use crate::subjects::{Cell, FLOWS, PORTS, Way};

const PANELS: [(&str, Traffic); 2] = [
    ("packets of 256 flows", Traffic::Flows(FLOWS[1])),
    ("first packets of flows", Traffic::FirstPackets),
];
/// Of a panel's plot.
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 70.0;
/// From one panel's left edge to the next one's.
const PITCH: f64 = 500.0;
/// Costs at the bottom and the top, as multiples of the bare redirect's.
const COSTS: [f64; 2] = [0.7, 1_000.0];

/// Nothing, where there are no figures to draw.
pub fn draw(report: &Report) -> Option<String> {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} 420" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT}" y="26" font-size="16">Cost of a packet against the number of tenants, as multiples of a bare XDP redirect</text>
"##,
        PITCH * 2.0 + 30.0
    );
    let mut drawn = false;
    for (number, (title, traffic)) in PANELS.into_iter().enumerate() {
        let _ = writeln!(
            svg,
            r#"<g transform="translate({},{TOP})">"#,
            LEFT + PITCH * number as f64
        );
        frame(&mut svg, title);
        let mut labels: Vec<f64> = Vec::new();
        for way in Way::ALL {
            drawn |= line(&mut svg, report, way, traffic, &mut labels);
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    drawn.then_some(svg)
}

fn frame(svg: &mut String, title: &str) {
    let _ = writeln!(
        svg,
        r##"<text x="0" y="-12" font-weight="bold">{title}</text>
<path d="M0,0V{HEIGHT}H{WIDTH}" fill="none" stroke="#333"/>
<text x="{}" y="{}" text-anchor="middle">tenants' ports</text>"##,
        WIDTH / 2.0,
        HEIGHT + 38.0
    );
    for ports in PORTS {
        let x = across(ports);
        let _ = writeln!(
            svg,
            r##"<path d="M{x:.1},{HEIGHT}v5" stroke="#333"/><text x="{x:.1}" y="{}" text-anchor="middle">{ports}</text>"##,
            HEIGHT + 20.0
        );
    }
    for cost in [1.0, 10.0, 100.0, 1_000.0] {
        let y = down(cost);
        let _ = writeln!(
            svg,
            r##"<path d="M0,{y:.1}H{WIDTH}" stroke="#ddd"/><text x="-8" y="{:.1}" text-anchor="end">{cost}×</text>"##,
            y + 4.0
        );
    }
}

/// One way's costs, with its name and last cost at the end. Returns whether
/// there were any.
fn line(
    svg: &mut String,
    report: &Report,
    way: Way,
    traffic: Traffic,
    labels: &mut Vec<f64>,
) -> bool {
    let points: Vec<(u16, f64)> = PORTS
        .into_iter()
        .filter_map(|ports| {
            let figure = report.find(way, Cell { ports, traffic })?;
            Some((ports, figure.ratio))
        })
        .collect();
    let Some(&(ports, last)) = points.last() else {
        return false;
    };
    let colour = colour(way);
    let path: Vec<String> = points
        .iter()
        .map(|(ports, cost)| format!("{:.1},{:.1}", across(*ports), down(*cost)))
        .collect();
    let _ = writeln!(
        svg,
        r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
        path.join(" ")
    );
    for (ports, cost) in &points {
        let (x, y) = (across(*ports), down(*cost));
        let _ = writeln!(
            svg,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#
        );
    }
    // Names keep their distance where lines meet.
    let mut y = down(last) + 4.0;
    while labels.iter().any(|taken| (taken - y).abs() < 13.0) {
        y -= 1.0;
    }
    labels.push(y);
    let decimals = if last < 10.0 { 2 } else { 0 };
    let _ = writeln!(
        svg,
        r#"<text x="{:.1}" y="{y:.1}" fill="{colour}">{} {last:.decimals$}×</text>"#,
        across(ports) + 8.0,
        label(way)
    );
    true
}

fn label(way: Way) -> &'static str {
    match way {
        Way::Redirect => "redirect",
        Way::Steered | Way::Hairpin => "vpn-edge",
        Way::Routing => "routing",
        Way::Nftables => "nftables",
        Way::Iptables => "iptables",
    }
}

fn colour(way: Way) -> &'static str {
    match way {
        Way::Redirect => "#888888",
        Way::Steered | Way::Hairpin => "#0a7d3c",
        Way::Routing => "#3366bb",
        Way::Nftables => "#b8860b",
        Way::Iptables => "#c0392b",
    }
}

fn across(ports: u16) -> f64 {
    let most = f64::from(PORTS[PORTS.len() - 1]);
    f64::from(ports).ln() / most.ln() * WIDTH
}

fn down(cost: f64) -> f64 {
    let [least, most] = COSTS.map(f64::ln);
    HEIGHT - (cost.ln() - least) / (most - least) * HEIGHT
}
