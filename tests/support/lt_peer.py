"""libtorrent as a peer and as a maker of torrents, for the end-to-end tests.

    lt_peer.py run TORRENT FOLDER IP:PORT     seeds or fetches until it is killed
    lt_peer.py make CONTENT TORRENT ANNOUNCE  version 1, with padding files between the files
    lt_peer.py show TORRENT                   name, info-hash and sizes
"""
import os
import sys

import libtorrent as lt


def run(torrent, folder, listen):
    session = lt.session({
        "listen_interfaces": listen,
        "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
        "enable_incoming_utp": False, "enable_outgoing_utp": False,
        "allow_multiple_connections_per_ip": True,
        "out_enc_policy": int(lt.enc_policy.disabled), "in_enc_policy": int(lt.enc_policy.enabled),
        "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.status_notification,
    })
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = folder
    params.flags |= lt.torrent_flags.disable_pex
    handle = session.add_torrent(params)
    flushed = False
    while True:
        session.wait_for_alert(100)
        for alert in session.pop_alerts():
            print(alert.message(), flush=True)
        if not flushed and handle.status().is_seeding:
            handle.flush_cache()
            flushed = True


def make(content, torrent, announce):
    files = lt.file_storage()
    lt.add_files(files, content)
    maker = lt.create_torrent(files, 64 * 1024, lt.create_torrent.v1_only | lt.create_torrent.canonical_files)
    maker.add_tracker(announce)
    lt.set_piece_hashes(maker, os.path.dirname(os.path.abspath(content)))
    with open(torrent, "wb") as file:
        file.write(lt.bencode(maker.generate()))


def show(torrent):
    info = lt.torrent_info(torrent)
    print(info.name(), info.info_hashes().v1, info.total_size(), info.num_pieces())


{"run": run, "make": make, "show": show}[sys.argv[1]](*sys.argv[2:])
