"""Tools: calls in each of the formats, whole and streamed, and what their choice means."""

import json

import openai

from harness import ServerTest

WEATHER = {'type': 'function', 'function': {
    'name': 'get_weather', 'description': 'The weather of a city.',
    'parameters': {'type': 'object', 'properties': {'city': {'type': 'string', 'maxLength': 20}, 'days': {'type': 'integer', 'minimum': 1, 'maximum': 9}},
                   'required': ['city', 'days'], 'additionalProperties': False}}}
TIME = {'type': 'function', 'function': {'name': 'get_time', 'parameters': {'type': 'object', 'properties': {}, 'additionalProperties': False}}}
NAMED = {'type': 'function', 'function': {'name': 'get_time'}}


class Calls:
    """The tests of every format."""

    def call(self, choice='required', text='What is the weather in Paris in the next 3 days?', tools=(WEATHER, TIME), **options):
        options = {'max_tokens': 120, 'parallel_tool_calls': False, **options}
        return self.chat(text, tools=list(tools), tool_choice=choice, **options)

    def check(self, name, arguments):
        arguments = json.loads(arguments)
        if name == 'get_weather':
            self.assertEqual(set(arguments), {'city', 'days'})
            self.assertTrue(isinstance(arguments['city'], str) and 1 <= arguments['days'] <= 9, arguments)
        else:
            self.assertEqual((name, arguments), ('get_time', {}))

    def test_required_is_a_call(self):
        for seed in range(3):
            choice = self.call(temperature=1, seed=seed).choices[0]
            self.assertEqual(choice.finish_reason, 'tool_calls')
            (call,) = choice.message.tool_calls
            self.assertIsNone(choice.message.content)
            self.assertTrue(call.id.startswith('call_'))
            self.check(call.function.name, call.function.arguments)

    def test_a_named_function_is_the_one_called(self):
        (call,) = self.call(NAMED).choices[0].message.tool_calls
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ('get_time', {}))

    def test_none_is_text(self):
        choice = self.call('none').choices[0]
        self.assertTrue(choice.message.content)
        self.assertIsNone(choice.message.tool_calls)

    def test_auto_is_either(self):
        for seed in range(4):
            choice = self.call('auto', temperature=1, seed=seed).choices[0]
            for call in choice.message.tool_calls or []:
                if choice.finish_reason == 'tool_calls':
                    self.check(call.function.name, call.function.arguments)
            self.assertTrue(choice.message.tool_calls or choice.message.content)

    def test_streamed_calls_are_the_same(self):
        (whole,) = self.call().choices[0].message.tool_calls
        name, arguments, ids, reasons, pieces = '', '', set(), set(), 0
        for chunk in self.call(stream=True):
            choice = chunk.choices[0]
            self.assertFalse(choice.delta.content)
            reasons.add(choice.finish_reason)
            for call in choice.delta.tool_calls or []:
                self.assertEqual(call.index, 0)
                ids.add(call.id)
                name += call.function.name or ''
                arguments += call.function.arguments or ''
                pieces += 1
        self.assertEqual((name, arguments), (whole.function.name, whole.function.arguments))
        self.assertEqual(len(ids - {None}), 1)
        self.assertEqual(reasons, {None, 'tool_calls'})
        self.assertGreater(pieces, 3)

    def test_several_calls_are_numbered(self):
        # A grammar lets the model go on; a short limit ends it.
        choice = self.call(tools=[TIME], parallel_tool_calls=True, max_tokens=200, logit_bias=self.no_end()).choices[0]
        self.assertGreater(len(choice.message.tool_calls), 1)
        self.assertEqual(len({c.id for c in choice.message.tool_calls}), len(choice.message.tool_calls))

    def no_end(self):
        _, reply = self.server.json('/tokenize', {'content': '<|im_end|><|endoftext|>'})
        return {str(id): -100 for id in reply['tokens']}

    def test_results_go_back(self):
        messages = [
            {'role': 'user', 'content': 'What is the weather in Paris?'},
            {'role': 'assistant', 'content': None, 'tool_calls': [
                {'id': 'call_1', 'type': 'function', 'function': {'name': 'get_weather', 'arguments': '{"city": "Paris", "days": 1}'}}]},
            {'role': 'tool', 'tool_call_id': 'call_1', 'content': '{"sky": "cloudless"}'},
        ]
        choice = self.chat(messages=messages, tools=[WEATHER], tool_choice='none', max_tokens=40).choices[0]
        self.assertTrue(choice.message.content)
        _, tokens = self.server.json('/tokenize', {'messages': messages})
        _, text = self.server.json('/detokenize', {'tokens': tokens['tokens']})
        self.assertIn('cloudless', text['content'])
        self.assertIn('get_weather', text['content'])


class Prompted(Calls, ServerTest):
    """The model's own template, which knows no tools."""

    def test_wrong_tools_are_named(self):
        for options, param in (
            ({'tools': [{'type': 'retrieval'}]}, 'tools[0].type'),
            ({'tools': [{'type': 'function', 'function': {'name': 'no spaces'}}]}, 'tools[0].function.name'),
            ({'tools': [WEATHER], 'tool_choice': 'sometimes'}, 'tool_choice'),
            ({'tools': [WEATHER], 'tool_choice': NAMED}, 'tool_choice'),
            ({'tool_choice': 'required'}, 'tool_choice'),
            ({'functions': []}, 'functions'),
        ):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.chat(extra_body=options)
            self.refused(caught.exception, 400, param)


class Tagged(Calls, ServerTest):
    template = '''{% if tools %}<|im_start|>system
Tools, one a line:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one within <tool_call></tool_call>.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{{ c.function.arguments.city }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{{ '<|im_start|>assistant\n' }}'''

    def test_text_may_have_a_schema_beside_tools(self):
        schema = {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': {'type': 'object', 'properties': {'a': {'type': 'boolean'}}, 'required': ['a'], 'additionalProperties': False}}}
        choice = self.call('auto', response_format=schema).choices[0]
        if choice.message.tool_calls:
            self.check(choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments)
        else:
            self.assertIsInstance(json.loads(choice.message.content)['a'], bool)


class Llama(Calls, ServerTest):
    template = '''{% if tools %}<|im_start|>system
Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}{{ '<|im_start|>assistant\n' }}'''
