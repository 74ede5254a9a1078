"""A headless Chromium, driven over the WebDriver protocol."""

import base64
import http.client
import json
import os
import re
import subprocess
import time

ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'
KEYS = {'enter': '\ue007', 'shift': '\ue008', 'escape': '\ue00c', 'tab': '\ue004'}


class Browser:
    def __init__(self, width=1000, height=800):
        self.driver = subprocess.Popen(['chromedriver', '--port=0'], stdout=subprocess.PIPE, text=True)
        for line in self.driver.stdout:
            if found := re.search(r'started successfully on port (\d+)', line):
                break
        self.port = int(found[1])
        arguments = ['--headless=new', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage', f'--window-size={width},{height}']
        if os.geteuid() == 0:
            arguments.append('--no-sandbox')
        capabilities = {'browserName': 'chrome', 'goog:chromeOptions': {'args': arguments}, 'goog:loggingPrefs': {'browser': 'ALL', 'performance': 'ALL'}}
        self.session = ''
        self.session = '/session/' + self.call('POST', '/session', {'capabilities': {'alwaysMatch': capabilities}})['sessionId']

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        connection.request(method, self.session + path, None if body is None else json.dumps(body))
        value = json.loads(connection.getresponse().read())['value']
        connection.close()
        if isinstance(value, dict) and 'error' in value:
            raise RuntimeError(value['message'])
        return value

    def open(self, url):
        self.call('POST', '/url', {'url': url})

    def script(self, text, *arguments):
        return self.call('POST', '/execute/sync', {'script': text, 'args': list(arguments)})

    def wait(self, text, patience=60):
        """Waits until an expression of JavaScript is true."""
        end = time.monotonic() + patience
        while not (value := self.script(f'return {text}')):
            if time.monotonic() > end:
                raise AssertionError(f'never true: {text}')
            time.sleep(0.05)
        return value

    def type(self, *keys):
        """Presses keys, wherever the focus is; a pair is the second while the first is held."""
        actions = []
        for key in keys:
            held = [] if isinstance(key, str) else [KEYS[key[0]]]
            pressed = [KEYS[k] if k in KEYS else k for k in [key if isinstance(key, str) else key[1]]]
            pressed = list(pressed[0]) if pressed[0] not in KEYS.values() else pressed
            actions += [{'type': 'keyDown', 'value': k} for k in held]
            for k in pressed:
                actions += [{'type': 'keyDown', 'value': k}, {'type': 'keyUp', 'value': k}]
            actions += [{'type': 'keyUp', 'value': k} for k in held]
        self.call('POST', '/actions', {'actions': [{'type': 'key', 'id': 'keyboard', 'actions': actions}]})

    def focus(self):
        """The focused element's id, or what is written on it."""
        return self.script('const e = document.activeElement; return e.id || e.textContent')

    def scheme(self, dark):
        """What the system prefers."""
        self.call('POST', '/goog/cdp/execute', {'cmd': 'Emulation.setEmulatedMedia', 'params': {
            'features': [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]}})

    def size(self, width, height):
        self.call('POST', '/goog/cdp/execute', {'cmd': 'Emulation.setDeviceMetricsOverride', 'params': {
            'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}})

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call('GET', '/screenshot')))

    def log(self, kind):
        return self.call('POST', '/se/log', {'type': kind})

    def close(self):
        try:
            self.call('DELETE', '')
        finally:
            self.driver.terminate()
            self.driver.wait()
            self.driver.stdout.close()
