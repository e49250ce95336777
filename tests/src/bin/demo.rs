use lab::topology::*;
fn main() -> anyhow::Result<()> {
    let t = std::time::Instant::now();
    let top = Topology::new(Uplink::Veth)?;
    println!("built in {:?}", t.elapsed());
    println!("{}", top.client_a.sh("ping -c1 -W1 198.51.100.2; ip addr; ps ax | head; mount | tail -5")?);
    Ok(())
}
