"""The web page in a headless Chromium. Its screenshots lie beside the bundles, in target/server-tests."""

import json

import harness
from browser import Browser
from harness import ServerTest

ANSWERED = "!document.querySelector('.waiting') && document.querySelectorAll('article.assistant').length"


class Page(ServerTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        super().tearDownClass()

    def setUp(self):
        self.browser.size(1000, 800)
        self.browser.scheme(dark=False)
        self.browser.open(self.server.url)
        self.browser.script('localStorage.clear()')
        self.browser.open(self.server.url)
        self.browser.wait("document.getElementById('model').textContent === 'smollm2'")

    def tearDown(self):
        # Neither a script nor the content policy complains, and nothing leaves the server.
        errors = [entry for entry in self.browser.log('browser') if entry['level'] == 'SEVERE']
        self.assertEqual(errors, [])
        for entry in self.browser.log('performance'):
            message = json.loads(entry['message'])['message']
            if message['method'] == 'Network.requestWillBeSent':
                url = message['params']['request']['url']
                self.assertTrue(url.startswith((self.server.url, 'data:')), url)

    def setting(self, name, value):
        self.browser.script("const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.onchange()", name, value)

    def show(self, name):
        """Takes screenshots in both themes, wide and narrow; nothing may be wider than the window."""
        for width, height in ((1000, 800), (360, 700)):
            self.browser.size(width, height)
            for dark in (False, True):
                self.browser.scheme(dark)
                ground = self.browser.script('return getComputedStyle(document.body).backgroundColor')
                self.assertEqual(int(ground.split('(')[1].split(',')[0]) < 128, dark)
                self.assertLessEqual(self.browser.script('return document.documentElement.scrollWidth'), width)
                self.browser.screenshot(harness.folder / f"{name}-{'dark' if dark else 'light'}-{width}.png")
        self.browser.size(1000, 800)
        self.browser.scheme(dark=False)

    def test_a_chat_by_keyboard_alone(self):
        browser = self.browser
        self.setting('max_tokens', '24')
        self.setting('temperature', '0')
        self.assertEqual(browser.focus(), 'text')
        browser.type('Name two', ('shift', 'enter'), 'colours.')
        self.assertEqual(browser.script("return document.getElementById('text').value"), 'Name two\ncolours.')
        browser.type('enter')
        browser.wait(ANSWERED)
        self.assertEqual(browser.script("return document.querySelector('article.user .said').textContent"), 'Name two\ncolours.')
        answer = browser.script("return document.querySelector('article.assistant .said').textContent")
        self.assertTrue(answer.strip())
        note = browser.script("return document.querySelector('.note').textContent")
        self.assertRegex(note, r'^\d+ tokens, [\d.]+ tokens/s')
        # Whoever listens instead of looking hears the whole answer, once.
        self.assertTrue(browser.script("return document.getElementById('status').textContent").startswith('Answer: '))
        self.assertEqual(browser.focus(), 'text')
        browser.type('And another?', 'enter')
        browser.wait(ANSWERED + ' === 2')
        self.show('page-chat')

    def test_escape_stops_an_answer(self):
        self.setting('max_tokens', '4000')
        # An answer that the model itself would end soon could be over before the key.
        self.browser.script("const own = request; request = () => ({...own(), ignore_eos: true})")
        self.browser.type('Tell me a very long story.', 'enter')
        self.browser.wait("document.querySelector('article.assistant .said').textContent.length > 20")
        self.assertFalse(self.browser.script("return document.getElementById('stop').hidden"))
        self.browser.type('escape')
        self.browser.wait(ANSWERED)
        self.assertEqual(self.browser.script("return document.querySelector('.note').textContent"), 'Stopped')
        self.server.wait_for(self.server.is_quiet)

    def test_the_focus_goes_round_in_order(self):
        seen = []
        for _ in range(6):
            self.browser.type('tab')
            seen.append(self.browser.focus())
        order = ['send', 'Skip to the message', 'new', 'toggle', 'theme']
        start = [name for name in seen if name in order]
        self.assertEqual(start[:len(order)], order, seen)

    def test_settings_reach_the_server_and_stay(self):
        browser = self.browser
        browser.script("document.getElementById('toggle').focus()")
        browser.type('enter')
        self.assertEqual(browser.focus(), 'temperature')
        self.show('page-settings')
        self.setting('system', 'Answer in French.')
        self.setting('temperature', '0.1')
        self.setting('max_tokens', '3')
        browser.type('escape')
        self.assertEqual(browser.focus(), 'toggle')
        sent = browser.script("messages.push({role: 'user', content: 'x'}); return request()")
        self.assertEqual(sent['messages'][0], {'role': 'system', 'content': 'Answer in French.'})
        self.assertEqual((sent['temperature'], sent['top_p'], sent['max_tokens']), (0.1, 0.95, 3))
        browser.open(self.server.url)
        self.assertEqual(browser.script("return document.getElementById('system').value"), 'Answer in French.')

    def test_the_theme_can_be_switched_and_stays(self):
        browser = self.browser
        dark = lambda: browser.script("return getComputedStyle(document.documentElement).colorScheme") == 'dark'
        self.assertFalse(dark())
        browser.script("document.getElementById('theme').focus()")
        browser.type('enter')
        self.assertTrue(dark())
        browser.open(self.server.url)
        self.assertTrue(dark())

    def test_text_of_a_model_is_never_markup(self):
        text = ('# Title\n<img src=x onerror="window.bad = 1"><script>window.bad = 2</script> **bold** and `code`\n\n- one\n- *two*\n\n'
                '3. three\n\n```python\nprint("<b>hi</b>")\n```\nThe end.\n\n```\nopen')
        html = self.browser.script(
            "const said = say('assistant', '').querySelector('.said'); render(arguments[0], said); return said.innerHTML", text)
        for part in ('<h3>Title</h3>', '&lt;img src=x onerror="window.bad = 1"&gt;', '<strong>bold</strong>', '<code>code</code>',
                     '<ul><li>one</li><li><em>two</em></li></ul>', '<ol start="3"><li>three</li></ol>',
                     '<code>print("&lt;b&gt;hi&lt;/b&gt;")</code>', '<code>open</code>'):
            self.assertIn(part, html)
        self.assertNotIn('<script', html)
        self.assertIsNone(self.browser.script('return window.bad'))
        self.show('page-blocks')

    def test_errors_are_shown(self):
        self.browser.script("document.getElementById('text').value = arguments[0]", 'word ' * 9000)
        self.browser.type('enter')
        self.browser.wait("document.querySelector('.note.bad')")
        self.assertIn('context', self.browser.script("return document.querySelector('.note').textContent"))
        # The browser itself notes the refused request.
        self.browser.log('browser')

    def test_the_page_needs_nothing_else(self):
        _, headers, body = self.server.request('/')
        policy = headers['Content-Security-Policy']
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn('unsafe', policy)
        nonce = policy.split("script-src 'nonce-")[1].split("'")[0].encode()
        self.assertEqual(body.count(b'nonce="' + nonce + b'"'), 2)
        self.assertNotIn(b'http://', body)
        self.assertNotIn(b'https://', body)
        self.assertNotEqual(self.server.request('/')[1]['Content-Security-Policy'], policy)
