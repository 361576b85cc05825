"""libtorrent as a peer in a race: lt_peer.py TORRENT FOLDER IP PORT DONE packaged|tuned

DONE is made once every byte has been handed to the kernel. `tuned` raises what its documentation names for fast links.
"""
import sys

import libtorrent as lt

torrent, folder, ip, port, done, profile = sys.argv[1:]
settings = {
    "listen_interfaces": f"{ip}:{port}",
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    "out_enc_policy": int(lt.enc_policy.disabled), "in_enc_policy": int(lt.enc_policy.enabled),
    "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.status_notification
    | lt.alert.category_t.storage_notification,
}
if profile == "tuned":
    settings |= {
        "send_buffer_watermark": 3 << 20, "send_buffer_watermark_factor": 150, "send_buffer_low_watermark": 1 << 20,
        "max_out_request_queue": 1500, "hashing_threads": 2, "aio_threads": 4, "unchoke_slots_limit": 500,
        "connection_speed": 500,
    }
session = lt.session(settings)
params = lt.add_torrent_params()
params.ti = lt.torrent_info(torrent)
params.save_path = folder
handle = session.add_torrent(params)
state = "fetching"
while True:
    session.wait_for_alert(50)
    flushed = any(isinstance(alert, lt.cache_flushed_alert) for alert in session.pop_alerts())
    if state == "fetching" and handle.status().is_seeding:
        handle.flush_cache()
        state = "flushing"
    elif state == "flushing" and flushed:
        open(done, "w").close()
        state = "seeding"
